/** Makes connections to one edge: credentials from their file, names through the agent's resolver, a proxy if need be. */
import type { Agent } from "node:http";
import { isIP, type LookupFunction } from "node:net";
import { ExitCode, Failure, readSecretFile, type Resolver } from "@sallyport/host";
import { connectTunnel, type LinkTransport } from "@sallyport/tunnel";
import { readCredentials } from "./credentials-file.ts";

export interface EdgeConnectorOptions {
  readonly credentialsFile: string;
  readonly proxy?: ProxySettings | undefined;
  readonly resolver: Pick<Resolver, "resolve">;
}

export interface ProxySettings {
  /** `http://host:port`, without credentials. */
  readonly url: string;
  /** One line `user:password`; the file's mode is checked as for every secret. */
  readonly credentialsFile?: string | undefined;
}

/** For a whole attempt, from the name to the edge's proof. */
const CONNECT_TIMEOUT_MS = 10_000;

/**
 * Connects and authenticates. The files are read each time, so that a new token or proxy password needs no restart.
 *
 * @throws TunnelConnectError; Failure when a file cannot be used
 */
export async function connectEdge(options: EdgeConnectorOptions, signal: AbortSignal): Promise<LinkTransport> {
  const { resolver, proxy } = options;
  const credentials = await readCredentials(options.credentialsFile);
  const agent = proxy === undefined ? undefined : await proxyAgent(proxy, resolver);
  return connectTunnel({
    ...credentials,
    ...(agent === undefined ? {} : { agent }),
    resolve: (host, { signal: attempt }) => resolver.resolve(host, { signal: attempt }),
    timeoutMs: CONNECT_TIMEOUT_MS,
    signal,
  });
}

async function proxyAgent(
  proxy: ProxySettings,
  resolver: Pick<Resolver, "resolve">,
): Promise<(signal: AbortSignal) => Agent> {
  // As a header and not as a part of the URL, which the library shows in its debug output.
  const headers =
    proxy.credentialsFile === undefined
      ? {}
      : { "Proxy-Authorization": `Basic ${await readProxyCredentials(proxy.credentialsFile)}` };
  // Only few agents need it.
  const { HttpsProxyAgent } = await import("https-proxy-agent");
  return (signal) => {
    const lookup: LookupFunction = (host, lookupOptions, callback) => {
      resolver.resolve(host, { signal }).then(
        (addresses) => {
          const found = addresses.map((address) => ({ address, family: isIP(address) }));
          const [first] = found;
          if (lookupOptions.all === true) callback(null, found);
          else callback(null, first?.address ?? "", first?.family);
        },
        () => callback(Object.assign(new Error("name not resolved"), { code: "ENOTFOUND" }), ""),
      );
    };
    // What it does not know it hands on to net.connect, `signal` and `lookup` among it.
    const agentOptions = { headers, keepAlive: false, signal, lookup };
    return new HttpsProxyAgent(proxy.url, agentOptions);
  };
}

/** `user:password` in base64, as RFC 7617 wants it. */
async function readProxyCredentials(path: string): Promise<string> {
  const line = (await readSecretFile(path)).replace(/\r?\n$/, "");
  if (!line.includes(":") || /[\r\n\0]/.test(line)) {
    throw new Failure(ExitCode.configuration, path, "must hold one line `user:password`");
  }
  return Buffer.from(line, "utf8").toString("base64");
}
