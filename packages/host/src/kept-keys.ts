import { isDeepStrictEqual } from "node:util";

export interface KeptKeys<Config, Key> {
  /** `next`, with the values of before under these keys. */
  readonly config: Config;
  /** Those whose value `next` would have changed. */
  readonly changed: readonly Key[];
}

/**
 * For a reload: the keys of a configuration that a program reads at its start only stay as they were then. So each reload
 * compares with what is in use, and nothing uses them before the restart that it asks for.
 */
export function keepKeys<Config extends object, Key extends keyof Config>(
  keys: readonly Key[],
  { before, next }: { readonly before: Config; readonly next: Config },
): KeptKeys<Config, Key> {
  const config = { ...next };
  for (const key of keys) config[key] = before[key];
  return { config, changed: keys.filter((key) => !isDeepStrictEqual(before[key], next[key])) };
}
