import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { TestProcess } from "../support/child-process.ts";
import { pollUntil, withDeadline } from "../support/deadline.ts";
import { makeTempDir } from "../support/temp-dir.ts";
import { root } from "./markdown.ts";

const started: TestProcess[] = [];
afterEach(async () => {
  await Promise.all(started.splice(0).map((demo) => demo.stop()));
});

async function startDemo(env: Record<string, string> = {}): Promise<TestProcess> {
  const demo = await TestProcess.start({
    command: process.execPath,
    args: [join(root, "scripts/demo.mjs")],
    cwd: root,
    env,
  });
  started.push(demo);
  return demo;
}

/** Ids of the demo's children, from the system. */
function childrenOf(pid: number): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((candidate) => parentOf(candidate) === pid);
}

/** Undefined when there is no such process, or only what is left of it until its parent looks. */
function parentOf(pid: number): number | undefined {
  try {
    const [, state, parent] = /\) (\S) (\d+)/.exec(readFileSync(`/proc/${pid}/stat`, "utf8")) ?? [];
    return state === "Z" ? undefined : Number(parent);
  } catch {
    return undefined;
  }
}

describe("npm start", () => {
  it("carries a request through the tunnel, tells of it in a line, and leaves nothing behind", async () => {
    const temp = await makeTempDir();
    const demo = await startDemo({ TMPDIR: temp.path });
    const hint = await demo.waitForLine(/^ *curl http:\/\/127\.0\.0\.1:\d+\/$/, 40_000);
    const url = hint.replace(/^ *curl /, "");
    const response = await fetch(url, { headers: { connection: "close" }, signal: AbortSignal.timeout(10_000) });
    expect(response.status).toBe(200);
    expect(await response.text()).toContain("Hello from the private target");
    await demo.waitForLine(
      /^\d\d:\d\d:\d\d {2}127\.0\.0\.1:\d+ → web → 127\.0\.0\.1:\d+ {2}\d+ B in, \d+ B out, \d+ ms {2}-- finished$/,
    );
    expect(readdirSync(temp.path)).toHaveLength(1);

    const { code } = await demo.stop();
    expect(code).toBe(0);
    expect(readdirSync(temp.path)).toEqual([]);
    await expect(fetch(url, { signal: AbortSignal.timeout(5_000) })).rejects.toThrow("fetch failed");
    await temp.remove();
  });

  it.skipIf(!existsSync("/proc/self/stat"))("takes its programs with it when it is killed", async () => {
    const temp = await makeTempDir();
    const demo = await startDemo({ TMPDIR: temp.path });
    await demo.waitForLine(/curl http:/, 40_000);
    const children = childrenOf(demo.pid);
    expect(children).toHaveLength(2);
    demo.signal("SIGKILL");
    await demo.waitForEnd();
    await pollUntil(() => (children.some((pid) => parentOf(pid) !== undefined) ? undefined : true), {
      what: "the end of both programs",
    });
    await temp.remove();
  });

  it("says what failed, and ends with an error", async () => {
    const demo = await startDemo({ TMPDIR: join(root, "does", "not", "exist") });
    const { code } = await withDeadline(demo.waitForEnd(40_000), { what: "the end of the demo", timeoutMs: 40_000 });
    expect(code).toBe(1);
    expect(demo.stderr).toMatch(/^error: demo: .*ENOENT/);
  });
});
