import { createHash } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { runSuccessfully, TestProcess } from "../support/child-process.ts";
import { findFreePort } from "../support/free-port.ts";
import { PseudoRandomBytes } from "../support/prng.ts";
import { describeWithPrograms } from "../support/required-program.ts";
import { ROUTE_MODES, Routes } from "../support/routes.ts";
import { makeTempDir } from "../support/temp-dir.ts";
import type { TempDir } from "../support/temp-dir.ts";

const VALUE_BYTES = 16 * 1024 * 1024;

describeWithPrograms("Redis", ["redis-server", "redis-benchmark", "redis-cli"], (programs) => {
  let directory: TempDir;
  let server: TestProcess;
  let routes: Routes<"redis">;

  beforeAll(async () => {
    directory = await makeTempDir();
    const port = await findFreePort();
    server = await TestProcess.start({
      command: programs["redis-server"],
      args: [
        "--bind",
        "127.0.0.1",
        "--port",
        String(port),
        "--dir",
        directory.path,
        "--save",
        "",
        "--appendonly",
        "no",
      ],
    });
    await server.waitForLine(/Ready to accept connections/);
    routes = await Routes.to({ redis: port });
  });

  afterAll(async () => {
    await routes?.stop();
    await server?.stop();
    await directory?.remove();
  });

  it.each(ROUTE_MODES)("answers 200,000 pipelined commands of each kind, %s", async (mode) => {
    const { stdout, stderr } = await runSuccessfully({
      command: programs["redis-benchmark"],
      args: [
        "-h",
        "127.0.0.1",
        "-p",
        String(routes.port("redis", mode)),
        "-P",
        "16",
        "-n",
        "200000",
        "-q",
        "-t",
        "set,get",
      ],
      timeoutMs: 120_000,
    });
    expect(stdout).toMatch(/SET: [\d.]+ requests per second/);
    expect(stdout).toMatch(/GET: [\d.]+ requests per second/);
    expect(stdout + stderr).not.toMatch(/error|closed/i);
    await routes.expectCarried("redis", mode, 50);
  });

  it.each(ROUTE_MODES)("returns a value of 16 MiB as it was stored, %s", async (mode) => {
    const source = new PseudoRandomBytes(`redis ${mode}`);
    const sent = join(directory.path, `sent-${mode}`);
    const received = join(directory.path, `received-${mode}`);
    await writeFile(sent, source.next(VALUE_BYTES));
    const base = ["-h", "127.0.0.1", "-p", String(routes.port("redis", mode))];
    const stored = await runSuccessfully({
      command: programs["redis-cli"],
      args: [...base, "-x", "SET", mode],
      inputFile: sent,
    });
    expect(stored.stdout.trim()).toBe("OK");
    await runSuccessfully({ command: programs["redis-cli"], args: [...base, "GET", mode], outputFile: received });
    const value = await readFile(received);
    // redis-cli ends its answer with a newline of its own.
    expect(value.length).toBe(VALUE_BYTES + 1);
    expect(createHash("sha256").update(value.subarray(0, VALUE_BYTES)).digest("hex")).toBe(source.digest());
  });
});
