/** Handshakes of docs/protocol.md §2 by hand, right and wrong: what stands in the request of an agent and in an edge's answer. */
import { createHash } from "node:crypto";
import type { TLSSocket } from "node:tls";
import {
  agentProof,
  createNonce,
  edgeProof,
  exportChannelBinding,
  formatAgentHello,
  formatEdgeHello,
  parseAgentHello,
} from "../../packages/tunnel/src/index.ts";
import type { Handshake } from "./hostile-frames.ts";

/** RFC 6455 §1.3. */
const WEB_SOCKET_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/** The request of an upgrade, with further headers as whole lines. */
export function upgradeRequest(headers: readonly string[], path = "/sallyport/v1"): string {
  return [
    `GET ${path} HTTP/1.1`,
    "Host: edge.example.com",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Protocol: sallyport.v1",
    ...headers,
    "",
    "",
  ].join("\r\n");
}

export interface AgentProofOptions {
  readonly client: string;
  readonly key: Buffer;
  readonly versions?: readonly number[];
  /** Whose exporter the proof is made over. Default: the connection's own. */
  readonly exporter?: Buffer;
  /** Made with the key and the transcript of an edge. */
  readonly asEdge?: boolean;
}

/** The value of an agent's `Authorization`. */
export function agentAuthorization(socket: TLSSocket, options: AgentProofOptions): string {
  const { client, key, versions = [1], exporter = exportChannelBinding(socket) } = options;
  const nonce = createNonce();
  const transcript = { exporter, client, versions, agentNonce: nonce };
  const mac =
    options.asEdge === true
      ? edgeProof(key, { ...transcript, version: 1, edgeNonce: nonce })
      : agentProof(key, transcript);
  return formatAgentHello({ client, nonce, versions, mac });
}

/** An edge's answer to the request of an agent, wrong in this way, or right where the way is no matter of the proof. */
export function edgeAnswer(
  kind: Exclude<Handshake, "stalled">,
  context: { readonly request: string; readonly socket: TLSSocket; readonly key: Buffer; readonly earlier: string },
): { readonly answer: string; readonly proof: string } {
  const { request, socket, key, earlier } = context;
  const header = (name: string) => new RegExp(`^${name}: (.*)$`, "im").exec(request)?.[1]?.trim() ?? "";
  const hello = parseAgentHello(header("authorization"));
  if (hello === undefined) throw new Error("the agent's request carries no proof");
  const edgeNonce = createNonce();
  const version = kind === "unknown version" ? 99 : 1;
  const exporter = kind === "through a relay" ? Buffer.alloc(32, 7) : exportChannelBinding(socket);
  const { client, versions, nonce: agentNonce } = hello;
  const mac = edgeProof(key, { exporter, client, versions, agentNonce, version, edgeNonce });
  if (kind === "wrong MAC") mac[0] = mac[0]! ^ 1;
  const own =
    kind === "reflected"
      ? formatEdgeHello({ nonce: agentNonce, version, mac: hello.mac })
      : formatEdgeHello({ nonce: edgeNonce, version, mac });
  const proof = kind === "replayed" ? earlier : own;
  const answer = [
    "HTTP/1.1 101 Switching Protocols",
    "Upgrade: websocket",
    "Connection: Upgrade",
    `Sec-WebSocket-Accept: ${createHash("sha1")
      .update(`${header("sec-websocket-key")}${WEB_SOCKET_GUID}`)
      .digest("base64")}`,
    "Sec-WebSocket-Protocol: sallyport.v1",
    ...(kind === "with compression" ? ["Sec-WebSocket-Extensions: permessage-deflate"] : []),
    `Sallyport-Authentication: ${proof}`,
    "",
    "",
  ].join("\r\n");
  return { answer, proof: own };
}
