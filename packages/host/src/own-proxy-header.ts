/** The PROXY header of a connection that its writer makes on its own behalf, such as a check of a target. */
import type { Socket } from "node:net";
import { parseIpAddress } from "./ip-address.ts";
import { encodeLocalProxyHeader, encodeProxyHeader, type ProxyEndpoint } from "./proxy-header.ts";

/** Version 2 says LOCAL; version 1 cannot, and names the two ends of the connected `socket`. */
export function ownProxyHeader(socket: Socket, version: 1 | 2): Buffer {
  if (version === 2) return encodeLocalProxyHeader();
  const source = endpointOf(socket.localAddress, socket.localPort);
  const destination = endpointOf(socket.remoteAddress, socket.remotePort);
  // A socket that is gone already has no ends; nobody reads what is written to it.
  if (source === undefined || destination === undefined) return Buffer.from("PROXY UNKNOWN\r\n", "latin1");
  return encodeProxyHeader({ version, source, destination });
}

function endpointOf(host: string | undefined, port: number | undefined): ProxyEndpoint | undefined {
  const address = parseIpAddress(host ?? "");
  return address === undefined || port === undefined ? undefined : { address, port };
}
