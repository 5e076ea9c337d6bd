/** Makes the one line that an agent joins with. */
import { ExitCode, Failure, formatHostPort } from "@sallyport/host";
import { certificatePin, encodeToken, formatPairingLine } from "@sallyport/tunnel";
import { X509Certificate } from "node:crypto";
import { loadTunnelCertificate } from "./certificate.ts";
import type { ClientStore, NewToken } from "./client-store.ts";
import type { EdgeConfig } from "./config.ts";

export interface PairResult {
  /** Holds the token: printed once, on standard output, and never logged. */
  readonly line: string;
  readonly client: string;
  /** Public name of the token, as in lists and logs. */
  readonly tokenId: string;
}

export interface PairRequest {
  readonly config: EdgeConfig;
  readonly clients: ClientStore;
  readonly client: string;
  /** Which tunnel the agent is to reach; may be left out when there is one. */
  readonly tunnel: string | undefined;
}

/** The first token of a client. @throws Failure when it has one */
export async function pairClient(request: PairRequest): Promise<PairResult> {
  return issue(request, (client) => request.clients.pair(client));
}

/** A second token beside the first, so that the agent can change over. @throws Failure when there are two */
export async function rotateClient(request: PairRequest): Promise<PairResult> {
  return issue(request, (client) => request.clients.rotate(client));
}

async function issue(request: PairRequest, make: (client: string) => Promise<NewToken>): Promise<PairResult> {
  const { config, client } = request;
  if (!config.clients.some(({ name }) => name === client)) {
    throw new Failure(
      ExitCode.configuration,
      "clients",
      `${client} is not declared; add it to the configuration first`,
    );
  }
  const tunnel = findTunnel(config, request.tunnel);
  // Before the token is made: what is missing must not leave a token that nobody has.
  const address = publicAddress(tunnel);
  const { cert } = await loadTunnelCertificate(tunnel, config.stateDir);
  const { token, tokenId } = await make(client);
  const der = new X509Certificate(cert).raw;
  const pinned =
    tunnel.tls?.trust === "system" ? {} : { pin: certificatePin(der), certificate: der.toString("base64") };
  return { line: formatPairingLine({ address, client, token: encodeToken(token), ...pinned }), client, tokenId };
}

/** Where agents reach the tunnel. An address that means "all of this machine" is of no use elsewhere. */
function publicAddress(tunnel: EdgeConfig["tunnels"][number]): string {
  const address = tunnel.publicAddress ?? tunnel.listen;
  const isUsable = address.port !== 0 && !["0.0.0.0", "::"].includes(address.host);
  if (isUsable) return formatHostPort(address);
  throw new Failure(
    ExitCode.configuration,
    `tunnels.${tunnel.name}.publicAddress`,
    "agents need an address to dial; set the host:port at which they reach this tunnel",
  );
}

function findTunnel(config: EdgeConfig, name: string | undefined): EdgeConfig["tunnels"][number] {
  const tunnel = name === undefined ? config.tunnels[0] : config.tunnels.find((candidate) => candidate.name === name);
  if (tunnel === undefined) {
    throw new Failure(
      ExitCode.configuration,
      "tunnels",
      name === undefined ? "no tunnel is declared" : `${name} is not declared`,
    );
  }
  if (name === undefined && config.tunnels.length > 1) {
    throw new Failure(ExitCode.usage, "--tunnel", "there are several tunnels; name the one that the agent reaches");
  }
  return tunnel;
}
