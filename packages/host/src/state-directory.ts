import { mkdir, stat } from "node:fs/promises";
import { ExitCode, Failure, systemFailure } from "./failure.ts";

/**
 * Makes the state directory when it is missing (mode 0700), and checks that nobody but its owner can use it.
 *
 * Two processes do not share one: the admin socket in it is taken by the first, and `AdminServer.listen` of the second
 * fails. So a program opens the directory, then listens on the socket, and only then writes.
 *
 * @throws Failure 77 for a foreign owner (root may work in the directory of a service) or any right of group and others,
 *   78 when something else stands at the path, 74 or 77 when it cannot be made
 */
export async function openStateDirectory(path: string): Promise<void> {
  let stats: Awaited<ReturnType<typeof stat>>;
  try {
    await mkdir(path, { recursive: true, mode: 0o700 });
    stats = await stat(path);
  } catch (error) {
    if (error instanceof Error && "code" in error && (error.code === "EEXIST" || error.code === "ENOTDIR")) {
      throw notADirectory(path);
    }
    throw systemFailure(error, path, "make the state directory");
  }
  // A symbolic link is followed: systemd makes one for services with a dynamic user. What it leads to is checked.
  if (!stats.isDirectory()) {
    throw notADirectory(path);
  }
  const uid = process.getuid?.();
  if (uid === undefined) {
    return;
  }
  if (uid !== 0 && stats.uid !== uid) {
    throw new Failure(
      ExitCode.permission,
      path,
      `the state directory belongs to another user (uid ${stats.uid}); run the program as that user, or chown the directory to uid ${uid}`,
    );
  }
  if ((stats.mode & 0o077) !== 0) {
    const mode = (stats.mode & 0o777).toString(8).padStart(4, "0");
    throw new Failure(
      ExitCode.permission,
      path,
      `the state directory has mode ${mode}, so others can use it; needed is 0700: chmod 700 the directory`,
    );
  }
}

function notADirectory(path: string): Failure {
  return new Failure(ExitCode.configuration, path, "stateDir must be a directory");
}
