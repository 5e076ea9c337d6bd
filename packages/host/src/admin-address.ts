import { createHash } from "node:crypto";
import { join, resolve } from "node:path";
import { ExitCode, Failure } from "./failure.ts";

/** What `sockaddr_un` holds besides the zero at the end: 108 bytes on Linux, 104 on macOS and the BSDs. */
const MAX_PATH_BYTES = process.platform === "linux" ? 107 : 103;

/**
 * The path of a program's admin socket: `admin.sock` in its state directory; on Windows, which has no such files, a named
 * pipe that is called after the directory.
 *
 * @throws Failure 78 when the path is too long for a socket
 */
export function adminAddress(stateDir: string): string {
  const directory = resolve(stateDir);
  if (process.platform === "win32") {
    const digest = createHash("sha256").update(directory.toLowerCase()).digest("hex").slice(0, 32);
    return `\\\\.\\pipe\\sallyport-${digest}`;
  }
  const path = join(directory, "admin.sock");
  if (Buffer.byteLength(path) > MAX_PATH_BYTES) {
    throw new Failure(
      ExitCode.configuration,
      "stateDir",
      `the path of the admin socket in it would have ${Buffer.byteLength(path)} bytes; the system allows ${MAX_PATH_BYTES}, so choose a shorter directory`,
    );
  }
  return path;
}
