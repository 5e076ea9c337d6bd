/**
 * The installation of the README, carried out: its two configurations, its commands in their order, on one machine. What is
 * different here is a table of words; systemd and the journal are played by the test.
 */
import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createServer, connect, type AddressInfo, type Server } from "node:net";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { runSuccessfully, TestProcess } from "../support/child-process.ts";
import { pollUntil } from "../support/deadline.ts";
import { findFreePort } from "../support/free-port.ts";
import { makeTempDir, type TempDir } from "../support/temp-dir.ts";
import { fences, root, section } from "./markdown.ts";

const BANNER = "SSH-2.0-target\r\n";

interface Walk {
  readonly temp: TempDir;
  readonly target: Server;
  readonly ports: Readonly<Record<"partner" | "tunnel" | "edgeMetrics" | "agentMetrics", number>>;
  readonly programs: Map<string, TestProcess>;
  /** What each command printed. */
  readonly output: Map<string, string>;
}

let walk: Walk;

/** A line of the README in this machine's words. */
function translate(text: string): string {
  const { temp, ports, target } = walk;
  const words: readonly (readonly [string, string])[] = [
    ["/etc/sallyport", join(temp.path, "etc")],
    ["/var/lib/", `${temp.path}/var/`],
    ["0.0.0.0:7443", `127.0.0.1:${ports.tunnel}`],
    ["edge.example.com:7443", `127.0.0.1:${ports.tunnel}`],
    ["0.0.0.0:2222", `127.0.0.1:${ports.partner}`],
    ["127.0.0.1:9180", `127.0.0.1:${ports.edgeMetrics}`],
    ["127.0.0.1:9181", `127.0.0.1:${ports.agentMetrics}`],
    ["sftp.corp.example:22", `127.0.0.1:${(target.address() as AddressInfo).port}`],
    ["203.0.113.", "127.0.0."],
  ];
  return words.reduce((translated, [from, to]) => translated.replaceAll(from, to), text);
}

/** Runs a block of the README, a line at a time. `pasted` is what the person at the keyboard pastes into `join`. */
async function follow(host: "edge-host" | "agent-host", options: { block: number; pasted?: string }): Promise<void> {
  const block = fences("README.md").filter(({ info }) => info === host)[options.block];
  if (block === undefined) throw new Error(`README.md has no block ${options.block} for ${host}`);
  for (const line of block.text.trim().split("\n")) {
    if (line.startsWith("install ") && line.includes("/etc/systemd/system/")) continue;
    if (line.startsWith("journalctl ")) continue;
    const [, unit] = /systemctl enable --now (sallyport-\w+)$/.exec(line) ?? [];
    if (unit !== undefined) {
      await enable(unit);
      continue;
    }
    // The users of the services are not made here.
    const command = translate(line).replace(/ -o sallyport-\w+ -g sallyport-\w+/, "");
    const { stdout } = await runSuccessfully({
      command: "/bin/sh",
      args: ["-ec", command],
      env: { PATH: `${join(walk.temp.path, "bin")}:${process.env["PATH"]}` },
      ...(line.includes(" join ") ? { input: options.pasted ?? "" } : {}),
    });
    walk.output.set(line, stdout);
  }
}

/** What the unit starts, until it says that it is ready. */
async function enable(unit: string): Promise<void> {
  const program = await TestProcess.start({
    command: join(walk.temp.path, "bin", unit),
    args: [unit === "sallyport-edge" ? "serve" : "run"],
  });
  walk.programs.set(unit, program);
  await program.waitForLine(/"msg":"ready"/, 30_000);
}

/** The programs on the PATH, with the configuration that they would find in /etc. */
function installPrograms(directory: string): void {
  const bin = join(directory, "bin");
  mkdirSync(bin);
  mkdirSync(join(directory, "etc"));
  mkdirSync(join(directory, "var"));
  for (const name of ["edge", "agent"]) {
    const script = join(root, "packages", name, "bin", `sallyport-${name}.js`);
    const config = join(directory, "etc", `${name}.yaml`);
    const node = process.env["SALLYPORT_TEST_NODE"] ?? process.execPath;
    writeFileSync(
      join(bin, `sallyport-${name}`),
      `#!/bin/sh\ncase "$1" in join) exec "${node}" "${script}" "$@";; *) exec "${node}" "${script}" "$@" --config "${config}";; esac\n`,
    );
    chmodSync(join(bin, `sallyport-${name}`), 0o755);
  }
}

function output(command: string): string {
  const found = [...walk.output].find(([line]) => line.startsWith(command))?.[1];
  if (found === undefined) throw new Error(`the README does not run ${command}`);
  return found;
}

async function metricNames(port: number): Promise<string[]> {
  const response = await fetch(`http://127.0.0.1:${port}/metrics`, { signal: AbortSignal.timeout(5_000) });
  return [...(await response.text()).matchAll(/^# HELP (\w+) /gm)].map(([, name = ""]) => name);
}

async function readyz(port: number): Promise<string> {
  const response = await fetch(`http://127.0.0.1:${port}/readyz`, { signal: AbortSignal.timeout(5_000) });
  return `${response.status} ${(await response.text()).trim()}`;
}

async function untilReady(port: number): Promise<void> {
  await pollUntil(async () => ((await readyz(port)) === "200 ready" ? true : undefined), {
    what: `readiness at port ${port}`,
    timeoutMs: 20_000,
  });
}

describe.skipIf(process.platform === "win32")("the installation of the README", () => {
  beforeAll(async () => {
    const temp = await makeTempDir();
    const target = createServer((socket) => {
      socket.on("error", () => undefined);
      socket.end(BANNER);
    });
    await new Promise<void>((resolve) => target.listen(0, "127.0.0.1", resolve));
    const ports = {
      partner: await findFreePort(),
      tunnel: await findFreePort(),
      edgeMetrics: await findFreePort(),
      agentMetrics: await findFreePort(),
    };
    walk = { temp, target, ports, programs: new Map(), output: new Map() };
    installPrograms(temp.path);
    for (const name of ["edge.yaml", "agent.yaml"]) {
      const shown = fences("README.md").find(({ info }) => info === name);
      writeFileSync(join(temp.path, "etc", name), translate(shown?.text ?? ""));
    }
  });

  afterAll(async () => {
    await Promise.all([...walk.programs.values()].map((program) => program.stop()));
    walk.target.close();
    await walk.temp.remove();
  });

  it("on the edge host ends with a pairing line", async () => {
    await follow("edge-host", { block: 0 });
    expect(output("sallyport-edge pair lan")).toMatch(/^sallyport-pair:1:\S+\n$/);
    expect(await readyz(walk.ports.edgeMetrics)).toMatch(/^503 deployment partner-sftp: no agent of client lan/);
  });

  it("on the agent host ends with a connected agent", async () => {
    await follow("agent-host", { block: 0, pasted: output("sallyport-edge pair lan") });
    await untilReady(walk.ports.agentMetrics);
    expect(output("sallyport-agent check")).toContain("sftp");
  });

  it("is seen to work as the README says", async () => {
    await untilReady(walk.ports.edgeMetrics);
    await follow("edge-host", { block: 1 });
    expect(output("curl -s http://127.0.0.1:9180/readyz").trim()).toBe("ready");
    expect(output("sallyport-edge status")).toContain("lan-agent-1");
    expect(output("sallyport-edge test-ip")).toMatch(/^allow: /);
  });

  it("serves a partner, whose record follows", async () => {
    const received = await new Promise<string>((resolve, reject) => {
      const socket = connect(walk.ports.partner, "127.0.0.1");
      let text = "";
      socket.on("data", (chunk) => (text += String(chunk)));
      socket.on("error", reject);
      socket.on("close", () => resolve(text));
      socket.on("end", () => socket.end());
    });
    expect(received).toBe(BANNER);
    const line = await walk.programs.get("sallyport-edge")!.waitForLine(/"msg":"connection"/);
    expect(JSON.parse(line)).toMatchObject({ deployment: "partner-sftp", code: "--", bytesOut: BANNER.length });
  });

  it("shows metrics that are all in docs/operations.md, which names no other", async () => {
    const shown = [...(await metricNames(walk.ports.edgeMetrics)), ...(await metricNames(walk.ports.agentMetrics))];
    const documented =
      section("docs/operations.md", "metrics").match(/`(edge|agent|sallyport|process|nodejs)_\w+`/g) ?? [];
    expect(shown.length).toBeGreaterThan(20);
    expect(documented.map((name) => name.replaceAll("`", "")).sort()).toEqual([...new Set(shown)].sort());
  });

  it("leaves no secret in the output of either program", () => {
    const token = JSON.parse(
      Buffer.from(output("sallyport-edge pair lan").split(":")[2] ?? "", "base64url").toString("utf8"),
    ).token as string;
    expect(token).toHaveLength(43);
    for (const program of walk.programs.values()) {
      expect(program.stdout + program.stderr).not.toContain(token);
    }
  });
});
