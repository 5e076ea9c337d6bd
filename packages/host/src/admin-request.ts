/** The other end of the admin socket: what a command asks of the running program. */
import { request } from "node:http";
import { adminAddress } from "./admin-address.ts";
import type { AdminErrorAnswer } from "./admin-server.ts";
import { errorFacts, ExitCode, Failure } from "./failure.ts";
import { NotRunning } from "./not-running.ts";

/** Ten thousand connections with all their facts are some megabytes. */
const MAX_ANSWER_BYTES = 64 * 1024 * 1024;

/** Whom to ask. */
export interface AdminTarget {
  readonly stateDir: string;
  /** Name of the program, for messages. */
  readonly program: string;
}

export interface AdminRequest {
  readonly method: "GET" | "POST";
  readonly path: string;
  readonly body?: object;
  /** Until the whole answer is here. Default 10,000 ms. */
  readonly timeoutMs?: number;
}

/**
 * Asks the running program and resolves with its answer.
 *
 * @throws NotRunning (69) when nobody listens, Failure 69 when nobody answers in time, 77 when the socket may not be used; whatever the program itself
 *   refused with, with its exit code (69 where it gave none)
 */
export function adminRequest(target: AdminTarget, options: AdminRequest): Promise<unknown> {
  const { method, path, body, timeoutMs = 10_000 } = options;
  const socketPath = adminAddress(target.stateDir);
  const text = body === undefined ? undefined : JSON.stringify(body);
  return new Promise((resolve, reject) => {
    const fail = (error: Failure) => {
      clearTimeout(timer);
      reject(error);
      asking.destroy();
    };
    const asking = request(
      {
        socketPath,
        method,
        path,
        agent: false,
        headers:
          text === undefined ? {} : { "content-type": "application/json", "content-length": Buffer.byteLength(text) },
      },
      (response) => {
        const chunks: Buffer[] = [];
        let length = 0;
        response.on("error", (error) => fail(connectionFailure(error, target, socketPath)));
        response.on("data", (chunk: Buffer) => {
          length += chunk.length;
          if (length > MAX_ANSWER_BYTES) {
            fail(new Failure(ExitCode.unavailable, socketPath, "the answer is too long"));
            return;
          }
          chunks.push(chunk);
        });
        response.on("end", () => {
          clearTimeout(timer);
          try {
            resolve(readAnswer(target, response.statusCode ?? 0, Buffer.concat(chunks).toString("utf8")));
          } catch (error) {
            reject(error instanceof Error ? error : new Error("unreadable answer"));
          }
        });
      },
    );
    const timer = setTimeout(() => {
      const what = `${target.program} did not answer within ${timeoutMs} ms; look at its log`;
      fail(new Failure(ExitCode.unavailable, socketPath, what));
    }, timeoutMs);
    asking.on("error", (error) => fail(connectionFailure(error, target, socketPath)));
    asking.end(text);
  });
}

function connectionFailure(error: unknown, { program }: AdminTarget, socketPath: string): Failure {
  const { code, type } = errorFacts(error);
  switch (code) {
    case "ENOENT":
    case "ECONNREFUSED":
      return new NotRunning(socketPath, program);
    case "EACCES":
    case "EPERM":
      return new Failure(
        ExitCode.permission,
        socketPath,
        `permission denied; run the command as the user of ${program}, or as root`,
      );
    default:
      return new Failure(ExitCode.unavailable, socketPath, `${program} broke the connection off (${code ?? type})`);
  }
}

function readAnswer(target: AdminTarget, status: number, text: string): unknown {
  let answer: unknown;
  try {
    answer = JSON.parse(text);
  } catch {
    throw new Failure(ExitCode.unavailable, target.program, "its answer is not JSON");
  }
  if (status === 200) {
    return answer;
  }
  const { error } = answer as Partial<AdminErrorAnswer>;
  const exitCode = Object.values(ExitCode).find((code) => code === error?.exitCode && code !== ExitCode.ok);
  throw new Failure(
    exitCode ?? ExitCode.unavailable,
    error?.where ?? target.program,
    error?.message ?? `status ${status}`,
  );
}
