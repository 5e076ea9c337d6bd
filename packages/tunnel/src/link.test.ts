import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { once } from "node:events";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { TLSSocket } from "node:tls";
import { withDeadline } from "../../../test/support/deadline.ts";
import { testCertificate } from "../../../test/support/tunnel-ends.ts";
import { CloseCode, encodeFrame, FrameWriter, MAX_FRAME_BYTES } from "@sallyport/protocol";
import { Link, type LinkEnd } from "./link.ts";
import type { WebSocket } from "ws";
import { createToken, deriveVerifier } from "./token.ts";
import { connectTunnel } from "./tunnel-client.ts";
import { type TunnelPeer, TunnelServer } from "./tunnel-server.ts";
import { agentFraming } from "./web-socket-framing.ts";

const token = createToken();
const certificate = testCertificate();
const waiting: ((peer: TunnelPeer) => void)[] = [];
const server = new TunnelServer({
  listen: { host: "127.0.0.1", port: 0 },
  tls: certificate,
  credentials: () => [deriveVerifier(token, "lan")],
  onPeer: (peer) => waiting.shift()?.(peer),
  onEvent: () => undefined,
});
let port = 0;

beforeAll(async () => {
  ({ port } = await server.listen());
});
afterAll(() => server.close());

interface Ends {
  readonly edge: Link;
  readonly agent: Link;
  readonly edgeSocket: TLSSocket;
  readonly agentSocket: TLSSocket;
  readonly agentWebSocket: WebSocket;
  readonly received: Uint8Array[];
  readonly edgeEnd: Promise<LinkEnd>;
  readonly agentEnd: Promise<LinkEnd>;
}

async function connectLinks(): Promise<Ends> {
  const received: Uint8Array[] = [];
  const accepted = new Promise<Pick<Ends, "edge" | "edgeSocket" | "edgeEnd">>((resolve) => {
    waiting.push((peer) => {
      const edge = new Link(peer, "edge");
      edge.onMessage = (message) => received.push(new Uint8Array(message));
      const edgeEnd = new Promise<LinkEnd>((ended) => {
        edge.onClosed = ended;
      });
      resolve({ edge, edgeSocket: peer.socket, edgeEnd });
    });
  });
  const address = { host: "127.0.0.1", port };
  const connection = await connectTunnel({ address, certificate: certificate.cert, client: "lan", token });
  const agent = new Link(connection, "agent");
  const agentEnd = new Promise<LinkEnd>((ended) => {
    agent.onClosed = ended;
  });
  return {
    ...(await accepted),
    agent,
    agentEnd,
    agentSocket: connection.socket,
    agentWebSocket: connection.webSocket,
    received,
  };
}

/** Messages as an agent would send them, in one buffer. */
function messages(frames: Uint8Array[]): Uint8Array {
  const writer = new FrameWriter(new Uint8Array(1_000_000), agentFraming);
  for (const frame of frames) writer.put(frame);
  return writer.bytes.slice(0, writer.used);
}

describe("a link", () => {
  test("carries frames of every length in both directions, several in one write", async () => {
    const { edge, agent, received } = await connectLinks();
    const fromEdge: Uint8Array[] = [];
    const arrived = new Promise<void>((resolve) => {
      agent.onMessage = (message) => {
        fromEdge.push(new Uint8Array(message));
        if (fromEdge.length === 4) resolve();
      };
    });
    const frames = [1, 125, 126, MAX_FRAME_BYTES].map((length) => new Uint8Array(length).fill(length));
    const arrivedAtEdge = new Promise<void>((resolve) => {
      const before = edge.onMessage;
      edge.onMessage = (message) => {
        before(message);
        if (received.length === 4) resolve();
      };
    });
    edge.write((writer) => frames.forEach((frame) => writer.put(frame)));
    agent.write((writer) => frames.forEach((frame) => writer.put(frame)));
    await withDeadline(Promise.all([arrived, arrivedAtEdge]), { what: "frames" });
    expect(fromEdge).toEqual(frames);
    expect(received).toEqual(frames);
    agent.destroy();
  });

  test("processes nothing of what stands behind a fatal message in the same chunk", async () => {
    const { agentSocket, received, edgeEnd, agentEnd } = await connectLinks();
    const text = messages([new Uint8Array([65])]);
    text[0] = 0x81;
    const rest = messages(Array.from({ length: 999 }, (_, at) => encodeFrame({ type: "ping", token: at + 1 })));
    agentSocket.write(Buffer.concat([text, rest]));
    expect((await withDeadline(edgeEnd, { what: "close" })).code).toBeDefined();
    expect(received).toEqual([]);
    expect((await agentEnd).code).toBe(CloseCode.protocol);
  });

  test.for(["close", "destroy"] as const)("hears no message after its own %s", async (how) => {
    const { edge, agentSocket, edgeEnd } = await connectLinks();
    let count = 0;
    edge.onMessage = () => {
      count += 1;
      if (how === "close") edge.close(CloseCode.drain, "enough");
      else edge.destroy();
    };
    agentSocket.write(messages(Array.from({ length: 1_000 }, (_, at) => encodeFrame({ type: "ping", token: at + 1 }))));
    await withDeadline(edgeEnd, { what: "close" });
    expect(count).toBe(1);
  });

  test("is cut when it closes and its peer has ended without reading what was written", async () => {
    const { edge, edgeSocket, agentSocket, edgeEnd } = await connectLinks();
    // A new link begins to read in the next tick.
    await nextTurn();
    agentSocket.pause();
    // More than the two systems hold.
    edgeSocket.write(new Uint8Array(32 * 1_048_576));
    const ended = once(edgeSocket, "end");
    agentSocket.end();
    await withDeadline(ended, { what: "end of the agent's half" });
    edge.close(CloseCode.replaced, "replaced");
    const end = await withDeadline(edgeEnd, { what: "close" });
    expect(end).toEqual({ code: CloseCode.replaced, reason: "replaced", breach: false });
    agentSocket.destroy();
  });

  test("ends when a message is larger than a frame may be", async () => {
    const { agentSocket, received, edgeEnd } = await connectLinks();
    agentSocket.write(messages([new Uint8Array(MAX_FRAME_BYTES + 1)]));
    const end = await withDeadline(edgeEnd, { what: "close" });
    expect(end).toEqual({ code: 1009, reason: "WS_ERR_UNSUPPORTED_MESSAGE_LENGTH", breach: true });
    expect(received).toEqual([]);
  });

  test("takes a message in TLS records of 1 KiB, as some peers cut theirs", async () => {
    const { edge, agentSocket, received } = await connectLinks();
    const arrived = new Promise<void>((resolve) => {
      const before = edge.onMessage;
      edge.onMessage = (message) => {
        before(message);
        resolve();
      };
    });
    const message = messages([new Uint8Array(MAX_FRAME_BYTES).fill(3)]);
    agentSocket.setMaxSendFragment(1_024);
    agentSocket.write(message);
    await withDeadline(arrived, { what: "the message" });
    expect(received).toEqual([new Uint8Array(MAX_FRAME_BYTES).fill(3)]);
  });

  test("answers sixteen pings at once, again and again, of a peer that reads", async () => {
    const { edge, agentSocket, agentWebSocket } = await connectLinks();
    const pings = Buffer.concat(Array.from({ length: 16 }, () => Buffer.from([0x89, 0x80, 0, 0, 0, 0])));
    let pongs = 0;
    const answered = new Promise<void>((resolve) => {
      agentWebSocket.on("pong", () => {
        pongs += 1;
        if (pongs === 160) resolve();
        else if (pongs % 16 === 0) agentSocket.write(pings);
      });
    });
    agentSocket.write(pings);
    await withDeadline(answered, { what: "every pong" });
    expect(edge.dead).toBe(false);
  });

  test("says that its peer broke WebSocket, with the code of RFC 6455", async () => {
    const { agentSocket, edgeEnd } = await connectLinks();
    // A reserved bit (RFC 6455 §5.2).
    agentSocket.write(Buffer.from([0xa2, 0x80, 0, 0, 0, 0]));
    const end = await withDeadline(edgeEnd, { what: "close" });
    expect(end).toEqual({ code: 1002, reason: "WS_ERR_UNEXPECTED_RSV_2_3", breach: true });
  });

  test("takes no message between the fragments of another", async () => {
    const { agentSocket, received, edgeEnd } = await connectLinks();
    // A binary fragment that is not the last, and a whole message where only its continuation may come.
    agentSocket.write(Buffer.from([0x02, 0x81, 0, 0, 0, 0, 1]));
    agentSocket.write(messages([new Uint8Array(3)]));
    const end = await withDeadline(edgeEnd, { what: "close" });
    expect(end).toEqual({ code: 1002, reason: "WS_ERR_INVALID_OPCODE", breach: true });
    expect(received).toEqual([]);
  });

  test("writes nothing more after a write that failed", async () => {
    const { agent, agentSocket, agentEnd } = await connectLinks();
    const write = () => agent.write((writer) => writer.put(encodeFrame({ type: "ping", token: 1 })));
    let retries = 0;
    agent.onWritable = () => {
      retries += 1;
      if (retries < 100) write();
    };
    agentSocket.destroy();
    write();
    await withDeadline(agentEnd, { what: "close" });
    expect(retries).toBe(0);
  });

  test.for([
    [CloseCode.protocol, true],
    [CloseCode.policy, false],
  ] as const)("that closes with %i keeps its own reason, whatever the peer answers", async ([code, breach]) => {
    const { edge, agentSocket, edgeEnd } = await connectLinks();
    let breachesTold = 0;
    edge.onBreach = () => {
      breachesTold += 1;
    };
    edge.close(code, "said here");
    expect(breachesTold).toBe(breach ? 1 : 0);
    // A close frame with 4000: nothing is wrong, it says.
    agentSocket.write(Buffer.from([0x88, 0x82, 0, 0, 0, 0, 0x0f, 0xa0]));
    expect(await withDeadline(edgeEnd, { what: "close" })).toEqual({ code, reason: "said here", breach });
  });

  test("ends when its connection is cut, with a reason", async () => {
    const { agentSocket, edgeEnd } = await connectLinks();
    agentSocket.destroy();
    expect((await withDeadline(edgeEnd, { what: "close" })).code).toBe(1006);
  });
});
