import { chown } from "node:fs/promises";
import { runSuccessfully } from "./child-process.ts";

export interface UnprivilegedUser {
  readonly ids: { readonly uid: number; readonly gid: number };
  /** Makes a file or directory the user's. */
  own(path: string): Promise<void>;
}

/** The account under which a server runs that refuses root; `undefined` when the tests do not run as root anyway. */
export async function findUnprivilegedUser(name: string): Promise<UnprivilegedUser | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  const idOf = async (option: "-u" | "-g"): Promise<number> => {
    const { stdout } = await runSuccessfully({ command: "id", args: [option, name] });
    return Number(stdout.trim());
  };
  const ids = { uid: await idOf("-u"), gid: await idOf("-g") };
  return { ids, own: (path) => chown(path, ids.uid, ids.gid) };
}
