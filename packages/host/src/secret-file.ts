/**
 * Files that hold a secret are read only when nobody else can read them. Their content never appears in an error.
 */
import { constants, type Stats } from "node:fs";
import { type FileHandle, open, stat } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { ExitCode, Failure, systemFailure } from "./failure.ts";

/** No secret of ours is longer; a wrong path to something huge costs nothing. */
const MAX_BYTES = 64 * 1024;

/**
 * Reads a file that only its owner may read, as UTF-8. On POSIX systems the owner has to be this process's user or root; for
 * a process of root, the owner of the directory that holds the file will do as well (an operator looks at the files of a
 * service). On Windows access is a matter of ACLs, which are not looked at.
 *
 * @throws Failure 77 for too many readers or a foreign owner, 78 when it is no regular file or longer than 64 KiB, 74 or 77
 *   when it cannot be read
 */
export async function readSecretFile(path: string): Promise<string> {
  let file: FileHandle;
  try {
    // Non-blocking, because the open of a FIFO would wait for ever; O_NONBLOCK does not exist on Windows.
    file = await open(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
  } catch (error) {
    throw systemFailure(error, path, "read the file");
  }
  try {
    const stats = await file.stat();
    if (!stats.isFile()) {
      throw new Failure(ExitCode.configuration, path, "is not a regular file");
    }
    await checkAccess(path, stats);
    if (stats.size > MAX_BYTES) {
      throw new Failure(
        ExitCode.configuration,
        path,
        `is larger than ${MAX_BYTES / 1024} KiB; this is no file of ours`,
      );
    }
    return await file.readFile("utf8");
  } catch (error) {
    throw error instanceof Failure ? error : systemFailure(error, path, "read the file");
  } finally {
    await file.close().catch(() => undefined);
  }
}

/** Checks the open file, not the path: what is checked is what is read. */
async function checkAccess(path: string, stats: Stats): Promise<void> {
  const uid = process.getuid?.();
  if (uid === undefined) {
    return;
  }
  if ((stats.mode & 0o077) !== 0 && !isServiceCredential(path, stats)) {
    const mode = (stats.mode & 0o777).toString(8).padStart(4, "0");
    throw new Failure(
      ExitCode.permission,
      path,
      `holds a secret and has mode ${mode}, so others can use it; needed is 0600: chmod 600 the file, and make a new secret if others may have read it`,
    );
  }
  const isOurs = stats.uid === uid || stats.uid === 0 || (uid === 0 && stats.uid === (await directoryOwner(path)));
  if (!isOurs) {
    throw new Failure(
      ExitCode.permission,
      path,
      `holds a secret and belongs to another user (uid ${stats.uid}); needed is mode 0600 and the user that runs this program (uid ${uid})`,
    );
  }
}

/**
 * systemd hands credentials to a service with an ACL, whose mask shows as read permission of the group. The directory is
 * private to the service.
 */
function isServiceCredential(path: string, stats: Stats): boolean {
  const directory = process.env["CREDENTIALS_DIRECTORY"];
  return (
    directory !== undefined &&
    dirname(resolve(path)) === resolve(directory) &&
    stats.uid === 0 &&
    (stats.mode & 0o777) === 0o440
  );
}

async function directoryOwner(path: string): Promise<number | undefined> {
  try {
    return (await stat(dirname(path))).uid;
  } catch {
    return undefined;
  }
}
