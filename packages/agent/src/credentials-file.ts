/*
 * What an agent was told when it joined an edge: address, client, token and pin, as JSON in a file that only the agent can
 * read. It holds the token and is as secret.
 */
import { lstat } from "node:fs/promises";
import { ExitCode, errorFacts, Failure, readSecretFile, systemFailure, writeFileAtomically } from "@sallyport/host";
import {
  decodeToken,
  type Pairing,
  pairingCertificate,
  pairingIssue,
  pairingSchema,
  splitAddress,
  type TunnelConnectOptions,
} from "@sallyport/tunnel";

/** Everything in a credentials file, as `connectTunnel` takes it. */
export type Credentials = Pick<
  TunnelConnectOptions,
  "address" | "serverName" | "certificate" | "pin" | "client" | "token"
>;

export interface WriteCredentialsOptions {
  /** Replace a file that is there. Default false: it may hold the only copy of a token that is in use. */
  readonly force?: boolean;
}

/**
 * Writes a credentials file, mode 0600.
 *
 * @throws Failure 64 when the file exists and `force` is not set, 74 or 77 when it cannot be written
 */
export async function writeCredentials(
  path: string,
  pairing: Pairing,
  options: WriteCredentialsOptions = {},
): Promise<void> {
  if (options.force !== true && (await exists(path))) {
    throw new Failure(ExitCode.usage, path, "exists already and may hold a token in use; give --force to replace it");
  }
  await writeFileAtomically(path, `${JSON.stringify(pairingSchema.parse(pairing), undefined, 2)}\n`, 0o600);
}

/**
 * Reads a credentials file. One that does not exist is the usual state of a host that has not joined yet, and said so.
 *
 * @throws Failure 77 when others can read it, 74 when it cannot be read, 78 when it is not what `join` wrote. The
 *   message holds no value
 */
export async function readCredentials(path: string): Promise<Credentials> {
  if (!(await exists(path))) {
    throw new Failure(ExitCode.ioError, path, "does not exist; write it with `sallyport-agent join --out FILE`");
  }
  const text = await readSecretFile(path);
  const parsed = pairingSchema.safeParse(parseJson(text));
  const token = parsed.success ? decodeToken(parsed.data.token) : undefined;
  if (!parsed.success || token === undefined) {
    const reason = parsed.success ? "" : `: ${pairingIssue(parsed.error)}`;
    throw new Failure(
      ExitCode.configuration,
      path,
      `is not a valid credentials file${reason}; write it again with \`sallyport-agent join\``,
    );
  }
  const { address, serverName, client, pin } = parsed.data;
  const certificate = pairingCertificate(parsed.data);
  return {
    address: splitAddress(address),
    client,
    token,
    ...(serverName === undefined ? {} : { serverName }),
    ...(pin === undefined ? {} : { pin }),
    ...(certificate === undefined ? {} : { certificate }),
  };
}

/** Not following links: a link that points nowhere is somebody's intent as well. */
async function exists(path: string): Promise<boolean> {
  try {
    await lstat(path);
    return true;
  } catch (error) {
    if (errorFacts(error).code === "ENOENT") {
      return false;
    }
    throw systemFailure(error, path, "look at the file");
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
