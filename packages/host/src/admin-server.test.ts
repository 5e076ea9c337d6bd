import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { z } from "zod";
import { adminAddress } from "./admin-address.ts";
import { adminRequest } from "./admin-request.ts";
import { AdminError, type AdminRoute, AdminServer } from "./admin-server.ts";
import { ExitCode, Failure } from "./failure.ts";
import { NotRunning } from "./not-running.ts";

const calls: unknown[] = [];

const routes: AdminRoute[] = [
  { method: "GET", path: "/status", handler: () => ({ name: "edge-1" }) },
  {
    method: "POST",
    path: "/stop",
    body: z.strictObject({ name: z.string(), drain: z.boolean().default(false) }),
    handler: (body) => {
      calls.push(body);
      return body;
    },
  },
  { method: "POST", path: "/nothing", handler: () => undefined },
  { method: "POST", path: "/none", handler: () => Promise.reject(new AdminError(404, "deployment x does not exist")) },
  {
    method: "POST",
    path: "/failure",
    handler: () => {
      throw new Failure(ExitCode.configuration, "edge.yaml:1:1", "the file is empty");
    },
  },
  {
    method: "POST",
    path: "/bug",
    handler: () => {
      throw Object.assign(new TypeError("token=hunter2"), { code: "E_BUG" });
    },
  },
  {
    method: "POST",
    path: "/circular",
    handler: () => {
      const a: { a?: unknown } = {};
      a.a = a;
      return a;
    },
  },
  { method: "GET", path: "/silent", handler: () => new Promise(() => undefined) },
];

let stateDir: string;
let server: AdminServer;

describe.skipIf(process.platform === "win32")("the admin socket", () => {
  beforeEach(async () => {
    calls.length = 0;
    stateDir = await mkdtemp(join(tmpdir(), "sallyport-admin-"));
    server = new AdminServer({ stateDir, routes });
  });

  afterEach(async () => {
    await server.close();
    await rm(stateDir, { recursive: true });
  });

  const target = () => ({ stateDir, program: "sallyport-edge" });
  const post = (path: string, body?: object) =>
    adminRequest(target(), { method: "POST", path, ...(body === undefined ? {} : { body }) });

  test("answers what is asked", async () => {
    await server.listen();
    await expect(adminRequest(target(), { method: "GET", path: "/status" })).resolves.toEqual({ name: "edge-1" });
    await expect(post("/stop", { name: "sftp" })).resolves.toEqual({ name: "sftp", drain: false });
    await expect(post("/nothing")).resolves.toEqual({});
    expect(calls).toEqual([{ name: "sftp", drain: false }]);
  });

  test("belongs to its owner alone from the first moment on, and leaves the umask as it was", async () => {
    const before = process.umask(0o022);
    try {
      const listening = server.listen();
      // The socket is there already, before the event loop has turned.
      expect((await stat(server.address)).mode & 0o777).toBe(0o600);
      expect(process.umask()).toBe(0o022);
      await listening;
      expect((await stat(server.address)).mode & 0o777).toBe(0o600);
    } finally {
      process.umask(before);
    }
  });

  test("is gone after close, and close may be called twice", async () => {
    await server.listen();
    await server.close();
    await server.close();
    expect(await readdir(stateDir)).toEqual([]);
  });

  test("close cuts a request that is being answered", async () => {
    await server.listen();
    const failed = adminRequest(target(), { method: "GET", path: "/silent" }).catch((error: unknown) => error);
    // The request has arrived when another one after it is answered.
    await adminRequest(target(), { method: "GET", path: "/status" });
    await server.close();
    expect(await failed).toMatchObject({ exitCode: 69 });
  });

  async function leaveDeadSocket(): Promise<void> {
    const child: ChildProcess = spawn(process.execPath, [
      "-e",
      `require("net").createServer().listen(${JSON.stringify(adminAddress(stateDir))}, () => console.log("ready"))`,
    ]);
    await once(child.stdout!, "data");
    child.kill("SIGKILL");
    await once(child, "exit");
    expect(await readdir(stateDir)).toEqual(["admin.sock"]);
  }

  test("that a dead process left is replaced", async () => {
    await leaveDeadSocket();
    await server.listen();
    await expect(adminRequest(target(), { method: "GET", path: "/status" })).resolves.toEqual({ name: "edge-1" });
  });

  test("that a dead process left goes to one of several that start at once", async () => {
    await leaveDeadSocket();
    const others = [1, 2, 3].map(() => new AdminServer({ stateDir, routes }));
    try {
      const results = await Promise.allSettled([server, ...others].map((each) => each.listen()));
      expect(results.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
      await expect(adminRequest(target(), { method: "GET", path: "/status" })).resolves.toEqual({ name: "edge-1" });
    } finally {
      for (const other of others) await other.close();
    }
  });

  test("of a living process is not taken", async () => {
    await server.listen();
    const second = new AdminServer({ stateDir, routes: [] });
    await expect(second.listen()).rejects.toMatchObject({
      exitCode: 69,
      what: "another process uses this state directory; stop it, or give each its own stateDir",
    });
    await second.close();
    await expect(adminRequest(target(), { method: "GET", path: "/status" })).resolves.toEqual({ name: "edge-1" });
  });

  test("does not replace what is no socket", async () => {
    await writeFile(join(stateDir, "admin.sock"), "precious");
    await expect(server.listen()).rejects.toMatchObject({ exitCode: 78, where: join(stateDir, "admin.sock") });
    expect(await readFile(join(stateDir, "admin.sock"), "utf8")).toBe("precious");
  });

  test("in a directory that is missing is an error of the system", async () => {
    const nowhere = new AdminServer({ stateDir: join(stateDir, "none"), routes: [] });
    await expect(nowhere.listen()).rejects.toMatchObject({ exitCode: expect.any(Number), name: "Failure" });
  });

  test("with a path too long for the system is a configuration error", () => {
    expect(() => new AdminServer({ stateDir: `/${"x".repeat(100)}`, routes: [] })).toThrow(
      expect.objectContaining({ exitCode: 78, where: "stateDir", what: expect.stringContaining("shorter directory") }),
    );
  });

  test.each([
    ["/stop", { name: 1 }, "name: Invalid input: expected string, received number"],
    ["/stop", { name: "a", dran: true }, 'body: Unrecognized key: "dran"'],
    ["/stop", undefined, "name: Invalid input: expected string, received undefined"],
    ["/none", {}, "deployment x does not exist"],
    ["/status", {}, "method not allowed"],
    ["/nowhere", {}, "this program does not know the request; is it of another version?"],
    ["/status/../stop", {}, "this program does not know the request; is it of another version?"],
    ["/bug", {}, "internal: TypeError E_BUG"],
    ["/circular", {}, "internal: TypeError"],
  ])("refuses %s %j in words", async (path, body, what) => {
    await server.listen();
    await expect(post(path, body)).rejects.toMatchObject({ exitCode: 69, where: "sallyport-edge", what });
    expect(calls).toEqual([]);
  });

  test("hands a failure of the program on with its place and its exit code", async () => {
    await server.listen();
    await expect(post("/failure")).rejects.toMatchObject({
      exitCode: 78,
      where: "edge.yaml:1:1",
      what: "the file is empty",
    });
  });

  /** The status line of the answer to a request written by hand. */
  async function statusOf(text: string): Promise<string> {
    const socket = connect(server.address);
    socket.on("error", () => undefined);
    socket.write(text);
    let answer = "";
    for await (const chunk of socket) {
      answer += String(chunk);
    }
    return answer.split("\r\n", 1)[0] ?? "";
  }

  const head = (headers: string) => `POST /stop HTTP/1.1\r\nHost: x\r\nConnection: close\r\n${headers}\r\n\r\n`;

  test.each([
    ["a declared length over 64 KiB", head("Content-Type: application/json\r\nContent-Length: 65537"), 413],
    [
      "a real length over 64 KiB",
      `${head("Content-Type: application/json\r\nTransfer-Encoding: chunked")}10001\r\n${"x".repeat(0x10001)}\r\n`,
      413,
    ],
    ["another content type", `${head("Content-Type: text/plain\r\nContent-Length: 2")}{}`, 415],
    ["no content type", `${head("Content-Length: 2")}{}`, 415],
    ["no JSON", `${head("Content-Type: application/json\r\nContent-Length: 1")}{`, 400],
    ["a prototype", `${head("Content-Type: application/json\r\nContent-Length: 26")}{"__proto__":{"drain":true}}`, 400],
    ["no HTTP", "hello\r\n\r\n", 400],
  ])("refuses a request with %s", async (_, text, status) => {
    await server.listen();
    expect(await statusOf(text)).toContain(` ${status} `);
    expect(calls).toEqual([]);
    // It goes on.
    await expect(adminRequest(target(), { method: "GET", path: "/status" })).resolves.toEqual({ name: "edge-1" });
  });

  test("survives a caller that leaves in the middle of its request", async () => {
    await server.listen();
    const socket = connect(server.address);
    await once(socket, "connect");
    socket.write(`${head("Content-Type: application/json\r\nContent-Length: 1000")}{`);
    socket.destroy();
    await once(socket, "close");
    await expect(adminRequest(target(), { method: "GET", path: "/status" })).resolves.toEqual({ name: "edge-1" });
  });
});

describe.skipIf(process.platform === "win32")("a command that asks", () => {
  beforeEach(async () => {
    stateDir = await mkdtemp(join(tmpdir(), "sallyport-admin-"));
  });

  afterEach(async () => {
    await rm(stateDir, { recursive: true });
  });

  const ask = (timeoutMs = 5_000) =>
    adminRequest({ stateDir, program: "sallyport-edge" }, { method: "GET", path: "/status", timeoutMs });

  test("a program that does not run is told so", async () => {
    const failure = ask();
    await expect(failure).rejects.toBeInstanceOf(NotRunning);
    await expect(failure).rejects.toMatchObject({
      exitCode: 69,
      where: join(stateDir, "admin.sock"),
      what: "nobody listens: is sallyport-edge running, and with this configuration file?",
    });
  });

  async function withRawServer(onData: string | undefined, run: () => Promise<void>): Promise<void> {
    const raw = createServer((socket) => {
      socket.on("error", () => undefined);
      socket.on("data", () => (onData === undefined ? undefined : socket.end(onData)));
    });
    await once(raw.listen(adminAddress(stateDir)), "listening");
    try {
      await run();
    } finally {
      raw.close();
    }
  }

  test("a program that does not answer in time is told so", async () => {
    await withRawServer(undefined, async () => {
      const failure = ask(50);
      await expect(failure).rejects.not.toBeInstanceOf(NotRunning);
      await expect(failure).rejects.toMatchObject({
        exitCode: 69,
        what: "sallyport-edge did not answer within 50 ms; look at its log",
      });
    });
  });

  test.each([
    ["HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{x}", "its answer is not JSON"],
    ["HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n{", "sallyport-edge broke the connection off (ECONNRESET)"],
    ["HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}", "status 500"],
    ["", "sallyport-edge broke the connection off (ECONNRESET)"],
  ])("the answer %j is an error in words", async (answer, what) => {
    await withRawServer(answer, async () => {
      await expect(ask()).rejects.toMatchObject({ exitCode: 69, what });
    });
  });

  test.runIf(process.getuid?.() === 0)("a user who may not use the socket is told so", async () => {
    const server = new AdminServer({ stateDir, routes });
    await server.listen();
    process.seteuid?.(12_345);
    try {
      await expect(ask()).rejects.toMatchObject({ exitCode: 77, what: expect.stringContaining("permission denied") });
    } finally {
      process.seteuid?.(0);
      await server.close();
    }
  });

  test("a socket file in a directory of the same name as a file is no reason to crash", async () => {
    await mkdir(join(stateDir, "admin.sock"));
    await chmod(join(stateDir, "admin.sock"), 0o700);
    await expect(ask()).rejects.toBeInstanceOf(Failure);
  });
});
