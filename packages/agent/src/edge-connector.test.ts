import { X509Certificate } from "node:crypto";
import { once } from "node:events";
import { chmod, writeFile } from "node:fs/promises";
import { connect, createServer, type AddressInfo } from "node:net";
import { join } from "node:path";
import { Failure, Resolver } from "@sallyport/host";
import { certificatePin, encodeToken, TunnelConnectError } from "@sallyport/tunnel";
import { afterEach, describe, expect, it } from "vitest";
import { findFreePort } from "../../../test/support/free-port.ts";
import { HandWrittenEdge } from "../../../test/support/hand-written-edge.ts";
import { makeTempDir } from "../../../test/support/temp-dir.ts";
import { writeCredentials } from "./credentials-file.ts";
import { connectEdge, type ProxySettings } from "./edge-connector.ts";

const closers: (() => Promise<unknown> | void)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) await close();
});

/** A running edge and the credentials file of an agent that has joined it under `host`. */
async function joinedEdge({
  host = "127.0.0.1",
} = {}): Promise<{ edge: HandWrittenEdge; directory: string; file: string }> {
  const directory = await makeTempDir();
  closers.push(() => directory.remove());
  const edge = await HandWrittenEdge.start();
  closers.push(() => edge.stop());
  const file = join(directory.path, "dmz.credentials");
  const der = new X509Certificate(edge.certificate.cert).raw;
  await writeCredentials(file, {
    address: `${host}:${edge.port}`,
    client: "lan",
    token: encodeToken(edge.token),
    pin: certificatePin(der),
    certificate: der.toString("base64"),
  });
  return { edge, directory: directory.path, file };
}

/** A proxy that notes the head of each CONNECT and answers it with `status`; 200 connects to `to`. */
async function startProxy(status: string, to?: number): Promise<{ url: string; heads: string[] }> {
  const heads: string[] = [];
  const server = createServer((socket) => {
    socket.on("error", () => undefined);
    closers.push(() => void socket.destroy());
    if (status === "") return;
    let head = "";
    socket.on("data", function onData(bytes: Buffer) {
      head += bytes.toString("latin1");
      if (!head.includes("\r\n\r\n")) return;
      socket.off("data", onData);
      heads.push(head);
      if (to === undefined) {
        socket.end(`HTTP/1.1 ${status}\r\nContent-Length: 0\r\n\r\n`);
        return;
      }
      const upstream = connect(to, "127.0.0.1", () => {
        socket.write(`HTTP/1.1 ${status}\r\n\r\n`);
        socket.pipe(upstream).pipe(socket);
      });
      upstream.on("error", () => socket.destroy());
      closers.push(() => void upstream.destroy());
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  closers.push(() => void server.close());
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, heads };
}

function attempt(file: string, proxy?: ProxySettings, signal = new AbortController().signal) {
  return connectEdge({ credentialsFile: file, proxy, resolver: new Resolver() }, signal);
}

async function refusal(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => "connected",
    (error: unknown) => error,
  );
}

describe("the way to an edge", () => {
  it("is found with what `join` wrote", async () => {
    const { file } = await joinedEdge();
    const { webSocket } = await attempt(file);
    expect(webSocket.readyState).toBe(webSocket.OPEN);
    webSocket.terminate();
  });

  it("uses the agent's resolver for the edge's name", async () => {
    const { file } = await joinedEdge({ host: "localhost" });
    const { webSocket, socket } = await attempt(file);
    expect(socket.remoteAddress).toMatch(/127\.0\.0\.1$/);
    webSocket.terminate();
  });

  it("uses a new token as soon as it stands in the file", async () => {
    const { edge, file } = await joinedEdge();
    const der = new X509Certificate(edge.certificate.cert).raw;
    const pairing = {
      address: `127.0.0.1:${edge.port}`,
      client: "lan",
      pin: certificatePin(der),
      certificate: der.toString("base64"),
    };
    await writeCredentials(file, { ...pairing, token: encodeToken(Buffer.alloc(32, 9)) }, { force: true });
    expect(await refusal(attempt(file))).toMatchObject({ reason: "authentication" });
    await writeCredentials(file, { ...pairing, token: encodeToken(edge.token) }, { force: true });
    const { webSocket } = await attempt(file);
    webSocket.terminate();
  });

  it("is not taken with credentials that others can read", async () => {
    const { file } = await joinedEdge();
    await chmod(file, 0o644);
    const error = await refusal(attempt(file));
    expect(error).toBeInstanceOf(Failure);
    expect(error).toMatchObject({ exitCode: 77, where: file });
  });
});

describe("the way through a proxy", () => {
  it("leads to the edge, with the credentials of the file as a header", async () => {
    const { edge, directory, file } = await joinedEdge();
    const proxy = await startProxy("200 Connection established", edge.port);
    const credentialsFile = join(directory, "proxy.credentials");
    await writeFile(credentialsFile, "agent:s3cret:with colon\n", { mode: 0o600 });
    const { webSocket } = await attempt(file, { url: proxy.url, credentialsFile });
    webSocket.terminate();
    expect(proxy.heads).toHaveLength(1);
    expect(proxy.heads[0]).toMatch(new RegExp(`^CONNECT 127\\.0\\.0\\.1:${edge.port} HTTP/1\\.1\r\n`));
    const basic = Buffer.from("agent:s3cret:with colon").toString("base64");
    expect(proxy.heads[0]).toContain(`Proxy-Authorization: Basic ${basic}\r\n`);
  });

  it("tells wrong credentials from a proxy that refuses or is not there, and shows no secret", async () => {
    const { directory, file } = await joinedEdge();
    const credentialsFile = join(directory, "proxy.credentials");
    await writeFile(credentialsFile, "agent:s3cret", { mode: 0o600 });
    const wrong = await startProxy("407 Proxy Authentication Required");
    const refusing = await startProxy("403 Forbidden");
    const nobody = await findFreePort();
    const errors = await Promise.all(
      [wrong.url, refusing.url, `http://127.0.0.1:${nobody}`].map((url) =>
        refusal(attempt(file, { url, credentialsFile })),
      ),
    );
    expect(errors).toMatchObject([
      { reason: "proxy", detail: "status 407" },
      { reason: "proxy", detail: "status 403" },
      { reason: "proxy", detail: "ECONNREFUSED" },
    ]);
    for (const error of errors) {
      expect(error).toBeInstanceOf(TunnelConnectError);
      const shown = `${String(error)} ${(error as Error).stack ?? ""} ${JSON.stringify(error)}`;
      expect(shown).not.toContain("s3cret");
      expect(shown).not.toContain(Buffer.from("agent:s3cret").toString("base64"));
    }
  });

  it("is given up at once when the caller wants no more, also with a proxy that is silent", async () => {
    const { file } = await joinedEdge();
    const proxy = await startProxy("");
    const abort = new AbortController();
    const attempted = refusal(attempt(file, { url: proxy.url }, abort.signal));
    setImmediate(() => abort.abort());
    expect(await attempted).toMatchObject({ reason: "cancelled" });
  });

  it("is not taken with credentials that are no line `user:password`", async () => {
    const { directory, file } = await joinedEdge();
    const credentialsFile = join(directory, "proxy.credentials");
    for (const content of ["s3cret", "a:s3cret\nb:s3cret", ""]) {
      await writeFile(credentialsFile, content, { mode: 0o600 });
      const error = await refusal(attempt(file, { url: "http://127.0.0.1:1", credentialsFile }));
      expect(error).toMatchObject({ exitCode: 78, where: credentialsFile });
      expect(String(error)).not.toContain("s3cret");
    }
  });
});
