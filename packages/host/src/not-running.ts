import { ExitCode, Failure } from "./failure.ts";

/**
 * Nobody listens on the admin socket, so the state directory is in nobody's use. A program that does not answer is
 * another matter: it runs, and what is written behind its back does not reach it.
 */
export class NotRunning extends Failure {
  constructor(socketPath: string, program: string) {
    super(ExitCode.unavailable, socketPath, `nobody listens: is ${program} running, and with this configuration file?`);
  }
}
