import { writeFile } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { writeCredentials } from "../../packages/agent/src/credentials-file.ts";
import { Edge } from "../../packages/edge/src/edge.ts";
import { pairClient } from "../../packages/edge/src/pairing.ts";
import { createLogger, type Logger } from "../../packages/host/src/index.ts";
import { parsePairingLine } from "../../packages/tunnel/src/index.ts";
import { findFreePort } from "./free-port.ts";

/** A log whose lines go to `onLine`, or nowhere. */
export function loggerTo(name: string, onLine: (line: string) => void = () => undefined): Logger {
  return createLogger({ name, destination: { write: onLine } });
}

/** An edge in this process with the deployment `echo` for agents of the client `lan`, and the credentials of one. */
export class LoopbackEdge {
  readonly credentialsPath: string;
  readonly #configPath: string;
  readonly #log: Logger;
  #edge: Edge;

  private constructor(options: { edge: Edge; configPath: string; credentialsPath: string; log: Logger }) {
    this.#edge = options.edge;
    this.#configPath = options.configPath;
    this.credentialsPath = options.credentialsPath;
    this.#log = options.log;
  }

  /** Its files are in `directory`. The caller stops it. */
  static async start(directory: string, name: string, onLine?: (line: string) => void): Promise<LoopbackEdge> {
    const configPath = join(directory, `${name}.yaml`);
    const configuration = {
      name,
      stateDir: join(directory, name),
      tunnels: [{ name: "dmz", listen: `127.0.0.1:${await findFreePort()}` }],
      clients: [{ name: "lan" }],
      listeners: [{ name: "echo", listen: `127.0.0.1:${await findFreePort()}` }],
      deployments: [{ name: "echo", listener: "echo", target: "echo", via: { tunnel: "dmz", client: "lan" } }],
    };
    await writeFile(configPath, JSON.stringify(configuration));
    const log = loggerTo(name, onLine);
    const edge = await Edge.start(configPath, log);
    const { config, clients } = edge;
    const { line } = await pairClient({ config, clients, client: "lan", tunnel: undefined });
    const credentialsPath = join(directory, `${name}.credentials`);
    await writeCredentials(credentialsPath, parsePairingLine(line));
    return new LoopbackEdge({ edge, configPath, credentialsPath, log });
  }

  /** A new partner connection; it may be reset. */
  connectPartner(): Socket {
    const port = this.#edge.deployments.get("echo")?.address?.port ?? 0;
    const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    socket.on("error", () => undefined);
    return socket;
  }

  async stop(): Promise<void> {
    await this.#edge.stop({ drain: false });
  }

  /** Starts it again on its ports. */
  async restart(): Promise<void> {
    this.#edge = await Edge.start(this.#configPath, this.#log);
  }
}
