/*
 * The paired clients of an edge, in `stateDir/clients.json`: for each client the verifiers of one token, or of two while
 * they are rotated. A token itself is never stored; it exists in the pairing line and with the agent.
 *
 * The file is read when the store is opened and before each change, so that a command that worked on it while the edge was
 * not running loses nothing. Changes are made one after the other, those of other processes included, and take effect
 * when they are on the disk.
 */
import { mkdir, stat } from "node:fs/promises";
import { join } from "node:path";
import {
  ExitCode,
  errorFacts,
  Failure,
  readSecretFile,
  systemFailure,
  withFileLock,
  writeFileAtomically,
} from "@sallyport/host";
import {
  CLIENT_NAME_PATTERN,
  createToken,
  deriveVerifier,
  MAX_TOKENS_PER_CLIENT,
  tokenIdOf,
  type Verifier,
} from "@sallyport/tunnel";
import { z } from "zod";

const VERSION = 1;

/** What is read back at most, some 400 clients; a change that would not fit is refused. */
const MAX_FILE_BYTES = 64 * 1024;

/** A token in lists: its public name, and when it was made (ISO 8601, UTC). */
export interface StoredToken {
  readonly tokenId: string;
  readonly createdAt: string;
}

export interface StoredClient {
  readonly client: string;
  /** Oldest first; one or two. */
  readonly tokens: readonly StoredToken[];
}

/** A token that was just made. Secret; this is its only copy. */
export interface NewToken {
  readonly token: Buffer;
  readonly tokenId: string;
}

interface Entry extends Verifier {
  readonly createdAt: string;
}

const entrySchema = z
  .strictObject({
    tokenId: z.string().regex(/^[0-9a-f]{8}$/),
    verifier: z.string().regex(/^[A-Za-z0-9_-]{43}$/),
    createdAt: z.iso.datetime(),
  })
  .refine(({ tokenId, verifier }) => tokenIdOf(Buffer.from(verifier, "base64url")) === tokenId, {
    message: "tokenId does not belong to the verifier",
  });

const fileSchema = z.strictObject({
  version: z.literal(VERSION),
  // A list and not a map, because "__proto__" is a client's name like any other.
  clients: z.array(
    z.strictObject({
      client: z.string().regex(CLIENT_NAME_PATTERN),
      tokens: z.array(entrySchema).min(1).max(MAX_TOKENS_PER_CLIENT),
    }),
  ),
});

export class ClientStore {
  readonly #stateDir: string;
  readonly #path: string;
  /** Bounded by the size of the file. */
  #clients: ReadonlyMap<string, readonly Entry[]> = new Map();
  #lastChange: Promise<unknown> = Promise.resolve();

  private constructor(stateDir: string) {
    this.#stateDir = stateDir;
    this.#path = join(stateDir, "clients.json");
  }

  /**
   * Opens the store of a state directory; no file means no clients.
   *
   * @throws Failure 78 when the file is damaged, 77 when others can read it, 74 when it cannot be read
   */
  static async open(stateDir: string): Promise<ClientStore> {
    const store = new ClientStore(stateDir);
    await store.reload();
    return store;
  }

  /** Reads the file again. What was known stays when that fails. @throws Failure as `open` */
  async reload(): Promise<void> {
    this.#clients = await this.#read();
  }

  /** The verifiers that a client may authenticate with; none when it is not paired. */
  verifiers(client: string): readonly Verifier[] {
    return this.#clients.get(client) ?? [];
  }

  /** All paired clients, by name. */
  list(): StoredClient[] {
    return [...this.#clients]
      .map(([client, entries]) => ({
        client,
        tokens: entries.map(({ tokenId, createdAt }) => ({ tokenId, createdAt })),
      }))
      .sort((a, b) => (a.client < b.client ? -1 : 1));
  }

  /** Makes the first token of a client. @throws Failure 64 when it has one already */
  async pair(client: string): Promise<NewToken> {
    return this.#add(client, (tokens) => {
      const [token] = tokens;
      return token === undefined
        ? undefined
        : `is paired already (token ${token.tokenId}); make a second token with \`sallyport-edge client rotate ${client}\``;
    });
  }

  /**
   * Makes a second token beside the first; both are valid until one is revoked.
   *
   * @throws Failure 64 when there is none yet, or two already
   */
  async rotate(client: string): Promise<NewToken> {
    return this.#add(client, (tokens) => {
      if (tokens.length === 0) {
        return `is not paired; make its first token with \`sallyport-edge pair ${client}\``;
      }
      const [old, recent] = tokens;
      return old === undefined || recent === undefined
        ? undefined
        : `has two tokens already; revoke the one that is no longer used, the older is ${old.tokenId}: ` +
            `\`sallyport-edge client revoke ${client} ${old.tokenId}\` (the newer is ${recent.tokenId})`;
    });
  }

  /**
   * Removes one token of a client, or all when none is named, and resolves with the ids of what was removed.
   *
   * @throws Failure 64 when the client has no such token
   */
  async revoke(client: string, tokenId?: string): Promise<string[]> {
    return this.#change((clients) => {
      const tokens = clients.get(client) ?? [];
      const revoked = tokens.filter((token) => tokenId === undefined || token.tokenId === tokenId);
      if (revoked.length === 0) {
        const others = tokens.map((token) => token.tokenId).join(" and ");
        throw new Failure(
          ExitCode.usage,
          client,
          tokens.length === 0 ? "is not paired; there is nothing to revoke" : `has no such token; it has ${others}`,
        );
      }
      const kept = tokens.filter((token) => !revoked.includes(token));
      if (kept.length === 0) {
        clients.delete(client);
      } else {
        clients.set(client, kept);
      }
      return revoked.map((token) => token.tokenId);
    });
  }

  async #add(client: string, objection: (tokens: readonly Entry[]) => string | undefined): Promise<NewToken> {
    if (!CLIENT_NAME_PATTERN.test(client)) {
      throw new Failure(ExitCode.usage, "client", "a client's name has 1 to 255 letters, digits, _ or -");
    }
    return this.#change((clients) => {
      const tokens = clients.get(client) ?? [];
      const reason = objection(tokens);
      if (reason !== undefined) {
        throw new Failure(ExitCode.usage, client, reason);
      }
      const token = createToken();
      const verifier = deriveVerifier(token, client);
      clients.set(client, [...tokens, { ...verifier, createdAt: new Date().toISOString() }]);
      return { token, tokenId: verifier.tokenId };
    });
  }

  /** One change after the other, each on what the file holds then. */
  async #change<T>(apply: (clients: Map<string, readonly Entry[]>) => T): Promise<T> {
    const change = this.#lastChange.then(async () => {
      await this.#makeDirectory();
      return withFileLock(this.#path, async () => {
        const clients = new Map(await this.#read());
        const result = apply(clients);
        await this.#write(clients);
        this.#clients = clients;
        return result;
      });
    });
    this.#lastChange = change.catch(() => undefined);
    return change;
  }

  async #read(): Promise<Map<string, readonly Entry[]>> {
    try {
      await stat(this.#path);
    } catch (error) {
      if (errorFacts(error).code === "ENOENT") {
        return new Map();
      }
      throw systemFailure(error, this.#path, "look at the file");
    }
    const text = await readSecretFile(this.#path);
    const parsed = fileSchema.safeParse(parseJson(text));
    const clients = new Map<string, readonly Entry[]>();
    for (const { client, tokens } of parsed.data?.clients ?? []) {
      clients.set(
        client,
        tokens.map(({ tokenId, verifier, createdAt }) => ({
          tokenId,
          key: Buffer.from(verifier, "base64url"),
          createdAt,
        })),
      );
    }
    if (!parsed.success || clients.size !== parsed.data.clients.length) {
      const place = parsed.error?.issues[0]?.path.map(String).join(".") ?? "";
      throw new Failure(
        ExitCode.configuration,
        this.#path,
        `is damaged${place === "" ? "" : ` at ${place}`}; restore it from a backup, or remove it and pair all clients again`,
      );
    }
    return clients;
  }

  async #write(clients: ReadonlyMap<string, readonly Entry[]>): Promise<void> {
    const content: z.input<typeof fileSchema> = {
      version: VERSION,
      clients: [...clients].map(([client, entries]) => ({
        client,
        tokens: entries.map(({ tokenId, key, createdAt }) => ({
          tokenId,
          verifier: key.toString("base64url"),
          createdAt,
        })),
      })),
    };
    const text = `${JSON.stringify(content)}\n`;
    if (text.length > MAX_FILE_BYTES) {
      throw new Failure(ExitCode.configuration, this.#path, "has no room for another token; revoke what is not used");
    }
    await writeFileAtomically(this.#path, text, 0o600);
  }

  async #makeDirectory(): Promise<void> {
    try {
      await mkdir(this.#stateDir, { recursive: true, mode: 0o700 });
    } catch (error) {
      throw systemFailure(error, this.#stateDir, "make the directory");
    }
  }
}

/** Undefined, which the schema refuses, for text that is not JSON: the parser's own message quotes the text. */
function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
