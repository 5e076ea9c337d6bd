import { createHash } from "node:crypto";
import { once } from "node:events";
import { createReadStream, createWriteStream } from "node:fs";
import { copyFile, mkdir, rm, statfs, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { userInfo } from "node:os";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { afterAll, beforeAll, expect, it } from "vitest";
import { runSuccessfully, TestProcess } from "../support/child-process.ts";
import { withDeadline } from "../support/deadline.ts";
import { findFreePort } from "../support/free-port.ts";
import { PseudoRandomBytes, pseudoRandomStream } from "../support/prng.ts";
import { describeWithPrograms } from "../support/required-program.ts";
import { ROUTE_MODES, Routes } from "../support/routes.ts";
import { makeTempDir } from "../support/temp-dir.ts";
import type { TempDir } from "../support/temp-dir.ts";

const FILE_BYTES = 1024 ** 3;
/** The file, what the server stores of it and what the client gets back. */
const NEEDED_DISK_BYTES = 3 * FILE_BYTES + 512 * 1024 ** 2;

describeWithPrograms("OpenSSH", ["sshd", "sftp", "ssh-keygen"], (programs) => {
  let directory: TempDir;
  let server: TestProcess;
  let routes: Routes<"openssh">;
  let sha256: string;
  const path = (name: string): string => join(directory.path, name);

  beforeAll(async () => {
    directory = await makeTempDir();
    const disk = await statfs(directory.path);
    const freeBytes = disk.bavail * disk.bsize;
    if (freeBytes < NEEDED_DISK_BYTES) {
      throw new Error(`${directory.path}: ${freeBytes} bytes free, ${NEEDED_DISK_BYTES} needed`);
    }
    for (const key of ["host-key", "user-key"]) {
      await runSuccessfully({
        command: programs["ssh-keygen"],
        args: ["-q", "-t", "ed25519", "-N", "", "-f", path(key)],
      });
    }
    await copyFile(path("user-key.pub"), path("authorized-keys"));
    const port = await findFreePort();
    await writeFile(path("sshd.conf"), serverConfiguration(directory.path, port));
    // Without this directory, which its system service makes, sshd refuses to run as root.
    if (process.getuid?.() === 0) await mkdir("/run/sshd", { recursive: true, mode: 0o755 });
    server = await TestProcess.start({ command: programs.sshd, args: ["-D", "-e", "-f", path("sshd.conf")] });
    await server.waitForLine(/Server listening on 127\.0\.0\.1/);
    const source = new PseudoRandomBytes("openssh");
    await pipeline(pseudoRandomStream(source, FILE_BYTES), createWriteStream(path("original")));
    sha256 = source.digest();
    routes = await Routes.to({ openssh: port });
  });

  afterAll(async () => {
    await routes?.stop();
    await server?.stop();
    await directory?.remove();
  });

  it.each(ROUTE_MODES)("greets a partner that has not sent a byte, %s", async (mode) => {
    const partner = connect(routes.port("openssh", mode), "127.0.0.1");
    partner.on("error", () => undefined);
    try {
      const [banner] = await withDeadline(once(partner, "data"), { what: "the server's banner" });
      expect(String(banner)).toMatch(/^SSH-2\.0-OpenSSH/);
      expect(partner.bytesWritten).toBe(0);
    } finally {
      partner.destroy();
    }
  });

  it.each(ROUTE_MODES)("puts and gets a file of 1 GiB unchanged, %s", async (mode) => {
    const runSftp = (command: string) =>
      runSuccessfully({
        command: programs.sftp,
        args: [...clientOptions(directory.path, routes.port("openssh", mode)), `${userInfo().username}@127.0.0.1`],
        input: `${command}\n`,
        timeoutMs: 85_000,
      });
    try {
      await runSftp(`put ${path("original")} ${path("stored")}`);
      expect(await sha256Of(path("stored"))).toBe(sha256);
      await runSftp(`get ${path("stored")} ${path("returned")}`);
      expect(await sha256Of(path("returned"))).toBe(sha256);
    } finally {
      await rm(path("stored"), { force: true });
      await rm(path("returned"), { force: true });
    }
    await routes.expectCarried("openssh", mode, 2);
  });
});

function serverConfiguration(directory: string, port: number): string {
  return [
    `Port ${port}`,
    "ListenAddress 127.0.0.1",
    `HostKey ${directory}/host-key`,
    `AuthorizedKeysFile ${directory}/authorized-keys`,
    "PidFile none",
    // The keys lie below the system's temporary directory, which everyone may write to.
    "StrictModes no",
    "UsePAM no",
    "PasswordAuthentication no",
    "PermitRootLogin prohibit-password",
    "Subsystem sftp internal-sftp",
    "",
  ].join("\n");
}

function clientOptions(directory: string, port: number): string[] {
  const options = {
    IdentityFile: `${directory}/user-key`,
    IdentitiesOnly: "yes",
    UserKnownHostsFile: `${directory}/known-hosts`,
    GlobalKnownHostsFile: "none",
    StrictHostKeyChecking: "accept-new",
    BatchMode: "yes",
    // The cheapest cipher, so that the time goes into what is tested.
    Ciphers: "aes128-gcm@openssh.com",
  };
  const pairs = Object.entries(options).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
  return ["-F", "none", "-P", String(port), "-b", "-", ...pairs];
}

async function sha256Of(path: string): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path, { highWaterMark: 1024 * 1024 }), hash);
  return hash.digest("hex");
}
