/** `ssh -R`: the inner side dials sshd at the outer one, which listens for partners. The tunnel that every system has. */
import { copyFile, mkdir, writeFile } from "node:fs/promises";
import { userInfo } from "node:os";
import { runSuccessfully } from "../../support/child-process.ts";
import { findFreePort } from "../../support/free-port.ts";
import { findOnPath } from "../../support/program-path.ts";
import type { Peer } from "../peer.ts";
import type { PeerRun } from "../peer-run.ts";
import { versionOf } from "../program-version.ts";

export const opensshAesGcm = openssh("openssh-aes128-gcm", "aes128-gcm@openssh.com");
export const opensshDefault = openssh("openssh", undefined);

function openssh(id: string, cipher: string | undefined): Peer {
  return {
    id,
    title: `OpenSSH -R, ${cipher === undefined ? "default cipher" : "aes128-gcm"}`,
    kind: "tunnel",
    protection: `SSH 2, ${cipher ?? "chacha20-poly1305@openssh.com"}`,
    settings: "ServerAliveInterval 15, restarted at once when it ends",
    // What the cipher makes of the difference shows in these.
    ...(cipher === undefined ? { onlyGroups: ["bulk", "connections"] } : {}),
    programs: ["sshd", "ssh", "ssh-keygen"],
    version: () => versionOf("ssh", ["-V"], /OpenSSH_(\S+)/),
    start: (run) => start(run, cipher),
  };
}

async function start(run: PeerRun, cipher: string | undefined): Promise<ReadonlyMap<string, number>> {
  for (const key of ["host-key", "user-key"]) {
    await runSuccessfully({ command: "ssh-keygen", args: ["-q", "-t", "ed25519", "-N", "", "-f", run.path(key)] });
  }
  await copyFile(run.path("user-key.pub"), run.path("authorized-keys"));
  // Without this directory, which its system service makes, sshd refuses to run as root.
  if (process.getuid?.() === 0) await mkdir("/run/sshd", { recursive: true, mode: 0o755 });
  const tunnel = { host: run.site.edgeHost, port: await findFreePort(run.site.edgeHost) };
  const ciphers = cipher === undefined ? [] : [`Ciphers ${cipher}`];
  const serverConfig = [
    `Port ${tunnel.port}`,
    `ListenAddress ${tunnel.host}`,
    `HostKey ${run.path("host-key")}`,
    `AuthorizedKeysFile ${run.path("authorized-keys")}`,
    "PidFile none",
    // The keys lie below the system's temporary directory, which everyone may write to.
    "StrictModes no",
    "UsePAM no",
    "PasswordAuthentication no",
    "PermitRootLogin prohibit-password",
    "AllowTcpForwarding remote",
    // A session whose link is gone gives its listeners back soon.
    "ClientAliveInterval 15",
    ...ciphers,
    "",
  ];
  await writeFile(run.path("sshd.conf"), serverConfig.join("\n"));
  // sshd executes itself again and wants its full path for that.
  const sshd = findOnPath("sshd") ?? "/usr/sbin/sshd";
  await run.launch("edge", { command: sshd, args: ["-D", "-e", "-f", run.path("sshd.conf")] });
  await run.untilAccepted(tunnel.host, tunnel.port);
  const ports = new Map<string, number>();
  const forwards: string[] = [];
  for (const { name, port } of run.routes) {
    ports.set(name, await findFreePort());
    forwards.push("-R", `127.0.0.1:${ports.get(name)}:${run.site.targetHost}:${port}`);
  }
  const dialled = await run.dialled(tunnel);
  const options = {
    IdentityFile: run.path("user-key"),
    IdentitiesOnly: "yes",
    UserKnownHostsFile: run.path("known-hosts"),
    GlobalKnownHostsFile: "none",
    StrictHostKeyChecking: "accept-new",
    BatchMode: "yes",
    ExitOnForwardFailure: "yes",
    ServerAliveInterval: "15",
    ...(cipher === undefined ? {} : { Ciphers: cipher }),
  };
  await run.launchSupervised("agent", {
    command: "ssh",
    args: [
      "-F",
      "none",
      "-N",
      "-T",
      "-p",
      String(dialled.port),
      ...Object.entries(options).flatMap(([name, value]) => ["-o", `${name}=${value}`]),
      ...forwards,
      `${userInfo().username}@${dialled.host}`,
    ],
  });
  return ports;
}
