/** What stands in deploy/ works, or at least is what its programs take. */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { runProcess } from "../support/child-process.ts";
import { describeWithPrograms } from "../support/required-program.ts";
import { makeTempDir } from "../support/temp-dir.ts";
import { loadAgentConfig } from "../../packages/agent/src/config.ts";
import { loadEdgeConfig } from "../../packages/edge/src/config.ts";
import { makeSelfSignedCertificate } from "../../packages/edge/src/self-signed-certificate.ts";
import { root } from "./markdown.ts";

const deploy = join(root, "deploy");
const read = (path: string) => readFileSync(join(deploy, path), "utf8");

describe("the example configurations", () => {
  it.each(["edge.yaml", "edge-full.yaml"])("%s is accepted by the edge", (name) => {
    expect(loadEdgeConfig(join(deploy, "examples", name)).name).toBe("dmz-1");
  });

  it.each(["agent.yaml", "agent-full.yaml"])("%s is accepted by the agent", (name) => {
    expect(loadAgentConfig(join(deploy, "examples", name)).name).toBe("lan-agent-1");
  });

  it.each(["edge.yaml", "edge-full.yaml"])("%s passes `sallyport-edge check`", async (name) => {
    const temp = await makeTempDir();
    onTestFinished(() => temp.remove());
    const config = join(temp.path, name);
    // The certificate is looked at, too, so there has to be one.
    const { certificate, key } = await makeSelfSignedCertificate({ host: "edge.example.com" });
    writeFileSync(join(temp.path, "fullchain.pem"), certificate);
    writeFileSync(join(temp.path, "privkey.pem"), key, { mode: 0o600 });
    writeFileSync(config, read(join("examples", name)).replaceAll("/etc/sallyport/tls", temp.path));
    const { code, stdout, stderr } = await runProcess({
      command: process.execPath,
      args: [join(root, "packages/edge/bin/sallyport-edge.js"), "check", "--config", config],
    });
    expect(stderr).toBe("");
    expect(code).toBe(0);
    expect(stdout).toContain("partner-sftp");
  });

  it.each(["edge.yaml", "edge-full.yaml", "agent.yaml", "agent-full.yaml"])(
    "%s names its schema for editors",
    (name) => {
      const path = join(deploy, "examples", name);
      const [, schema = ""] = /^# yaml-language-server: \$schema=(\S+)\n/.exec(readFileSync(path, "utf8")) ?? [];
      expect(existsSync(resolve(dirname(path), schema))).toBe(true);
    },
  );
});

/** Values of a key of a unit, in order; systemd takes the last, or all for lists. */
function settings(unit: string, key: string): string[] {
  return [...unit.matchAll(new RegExp(`^${key}=(.*)$`, "gm"))].map(([, value = ""]) => value);
}

function seconds(text: string | undefined): number {
  const [, count, unit] = /^(\d+)(s|m|min)?$/.exec(text ?? "") ?? [];
  return Number(count) * (unit === "m" || unit === "min" ? 60 : 1);
}

const units = [
  {
    program: "edge",
    command: "serve",
    drainTimeoutMs: () => loadEdgeConfig(join(deploy, "examples/edge.yaml")).drainTimeout,
  },
  {
    program: "agent",
    command: "run",
    drainTimeoutMs: () => loadAgentConfig(join(deploy, "examples/agent.yaml")).drainTimeout,
  },
];

describe.each(units)("sallyport-$program.service", ({ program, command, drainTimeoutMs }) => {
  const unit = read(`systemd/sallyport-${program}.service`);

  it("starts a program that exists, with the command that serves", () => {
    const [start = ""] = settings(unit, "ExecStart");
    const [node, script = "", verb, option, config] = start.split(" ");
    expect(node).toBe("/usr/bin/node");
    expect(existsSync(script.replace("/opt/sallyport", root))).toBe(true);
    expect([verb, option, config]).toEqual([command, "--config", `/etc/sallyport/${program}.yaml`]);
  });

  it("waits until the program says that it is ready, and hears its helper", () => {
    expect(settings(unit, "Type")).toEqual(["notify"]);
    expect(settings(unit, "NotifyAccess")).toEqual(["all"]);
  });

  it("restarts after failures, but not after those that a restart cannot mend", () => {
    expect(settings(unit, "Restart")).toEqual(["on-failure"]);
    expect(settings(unit, "RestartPreventExitStatus").join(" ").split(" ").sort()).toEqual(["64", "77", "78"]);
  });

  it("lets the program drain before it is killed", () => {
    expect(seconds(settings(unit, "TimeoutStopSec")[0]) * 1_000).toBeGreaterThan(drainTimeoutMs() + 5_000);
  });

  it("reloads by SIGHUP", () => {
    expect(settings(unit, "ExecReload")).toEqual(["/bin/kill -HUP $MAINPID"]);
  });

  it("keeps the state to its own user", () => {
    expect(settings(unit, "User")).toEqual([`sallyport-${program}`]);
    expect(settings(unit, "StateDirectory")).toEqual([`sallyport-${program}`]);
    expect(settings(unit, "StateDirectoryMode")).toEqual(["0700"]);
    expect(read("systemd/sallyport.sysusers.conf")).toMatch(new RegExp(`^u sallyport-${program} `, "m"));
  });

  it("leaves V8 its compiler", () => {
    expect(settings(unit, "MemoryDenyWriteExecute")).toEqual([]);
  });

  it("has descriptors for the connections that are allowed by default", () => {
    expect(Number(settings(unit, "LimitNOFILE")[0])).toBeGreaterThan(20_000);
  });
});

describe("drop-ins", () => {
  it("the one for low ports gives that capability and no other", () => {
    const dropIn = read("systemd/drop-ins/edge-privileged-ports.conf");
    expect(settings(dropIn, "AmbientCapabilities")).toEqual(["CAP_NET_BIND_SERVICE"]);
    expect(settings(dropIn, "CapabilityBoundingSet")).toEqual(["CAP_NET_BIND_SERVICE"]);
  });

  it("the agent's fence denies everything that it does not list", () => {
    const dropIn = read("systemd/drop-ins/agent-egress.conf");
    expect(settings(dropIn, "IPAddressDeny")).toEqual(["any"]);
    const { allow } = loadAgentConfig(join(deploy, "examples/agent-full.yaml"));
    const blocks = allow.flatMap(({ text }) => /^[\d.]+\/\d+/.exec(text) ?? []);
    expect(settings(dropIn, "IPAddressAllow")).toEqual(expect.arrayContaining(blocks));
    expect(blocks.length).toBeGreaterThan(0);
  });
});

describeWithPrograms("systemd's own judgement", ["systemd-analyze"], ({ "systemd-analyze": analyze }) => {
  it.each(["edge", "agent"])("the exposure of sallyport-%s.service is 2.0 at most", async (program) => {
    const unit = join(deploy, `systemd/sallyport-${program}.service`);
    const { code, stdout } = await runProcess({
      command: analyze,
      args: ["security", "--offline=true", "--threshold=20", "--no-pager", unit],
    });
    const [, exposure] = /Overall exposure level for \S+: (\d+\.\d+)/.exec(stdout) ?? [];
    expect(Number(exposure)).toBeLessThanOrEqual(2);
    expect(code).toBe(0);
  });
});

describe.each(["edge", "agent"])("%s.Containerfile", (program) => {
  const file = read(`container/${program}.Containerfile`);
  const instructions = file
    .replaceAll("\\\n", " ")
    .split("\n")
    .filter((line) => line !== "" && !line.startsWith("#"));
  const of = (name: string) =>
    instructions.filter((line) => line.startsWith(`${name} `)).map((line) => line.slice(name.length + 1));

  it("copies what exists, and what the build context holds", () => {
    const copied = of("COPY").filter((copy) => !copy.startsWith("--from"));
    const sources = copied.flatMap((copy) => copy.split(/\s+/).slice(0, -1));
    expect(sources).toHaveLength(4);
    const context = read("container/.dockerignore").split("\n");
    for (const source of sources) {
      expect(context).toContain(`!${source.replace(/\/$/, "")}`);
    }
    expect(sources.filter((source) => !existsSync(join(root, source)))).toEqual([]);
  });

  it("runs the program without a shell and without root", () => {
    expect(JSON.parse(of("ENTRYPOINT")[0] ?? "")).toEqual([
      "node",
      `/opt/sallyport/packages/${program}/bin/sallyport-${program}.js`,
    ]);
    expect(JSON.parse(of("CMD")[0] ?? "")).toEqual([
      program === "edge" ? "serve" : "run",
      "--config",
      `/etc/sallyport/${program}.yaml`,
    ]);
    expect(of("USER")).toEqual(["1000:1000"]);
    expect(of("FROM").every((image) => image.startsWith("docker.io/library/node:24-"))).toBe(true);
  });

  it("checks the health that the example configuration opens", () => {
    const config = program === "edge" ? loadEdgeConfig : loadAgentConfig;
    const { metrics } = config(join(deploy, `examples/${program}.yaml`));
    expect(of("ENV").join("\n")).toContain(
      `SALLYPORT_HEALTH_URL=http://${metrics?.listen.host}:${metrics?.listen.port}/healthz`,
    );
    const [, check = ""] = /CMD (\[.*\])$/.exec(of("HEALTHCHECK")[0] ?? "") ?? [];
    expect(JSON.parse(check)).toHaveLength(3);
  });
});
