/** Every row of the report, in its order. */
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { UsageError } from "./options.ts";
import type { OursDirectory } from "./options.ts";
import type { Peer } from "./peer.ts";
import { bore } from "./peers/bore.ts";
import { chisel } from "./peers/chisel.ts";
import { frp } from "./peers/frp.ts";
import { haproxy } from "./peers/haproxy.ts";
import { loopback } from "./peers/loopback.ts";
import { nginxStream } from "./peers/nginx-stream.ts";
import { nodePipe, nodeTls } from "./peers/node-relay.ts";
import { opensshAesGcm, opensshDefault } from "./peers/openssh.ts";
import { ratholeNoise, ratholeTls } from "./peers/rathole.ts";
import { sallyport } from "./peers/sallyport.ts";
import { socat } from "./peers/socat.ts";
import { wstunnel } from "./peers/wstunnel.ts";

const root = fileURLToPath(new URL("../../", import.meta.url));

/** More links than one are for long ways. */
const FAR_GROUPS = ["path", "path-loss", "path-loss-bbr"];

export function allPeers(oursDirectories: readonly OursDirectory[]): Peer[] {
  const builds = [
    { suffix: "", title: "", root },
    ...oursDirectories.map(({ label, directory }) => ({
      suffix: `@${label}`,
      title: ` (${label})`,
      root: resolve(directory),
    })),
  ];
  const tunnelled = builds.flatMap((build): Peer[] => [
    sallyport({ id: `ours${build.suffix}`, title: `**Sallyport**${build.title}`, root: build.root, mode: "tunnelled" }),
    sallyport({
      id: `ours-4-links${build.suffix}`,
      title: `**Sallyport**, 4 links${build.title}`,
      root: build.root,
      mode: "tunnelled",
      agentConfig: { links: 4 },
      onlyGroups: FAR_GROUPS,
    }),
    sallyport({
      id: `ours-4-links-stripe${build.suffix}`,
      title: `**Sallyport**, 4 links, stripe${build.title}`,
      root: build.root,
      mode: "tunnelled",
      agentConfig: { links: 4, stripe: true },
      edgeConfig: { stripe: true },
      onlyGroups: FAR_GROUPS,
    }),
  ]);
  const direct = builds.map((build) =>
    sallyport({
      id: `ours-direct${build.suffix}`,
      title: `**Sallyport**, direct mode${build.title}`,
      root: build.root,
      mode: "direct",
    }),
  );
  return [
    ...tunnelled,
    nodeTls,
    opensshAesGcm,
    opensshDefault,
    frp,
    chisel,
    ratholeTls,
    ratholeNoise,
    wstunnel,
    bore,
    ...direct,
    nodePipe,
    haproxy,
    nginxStream,
    socat,
    loopback,
  ];
}

/** Those that are wanted, in their own order. `NAME*` takes all that begin with NAME. */
export function choose<T extends { readonly id: string }>(
  all: readonly T[],
  wanted: readonly string[],
  what: string,
): T[] {
  const matches = (pattern: string, id: string): boolean =>
    pattern.endsWith("*") ? id.startsWith(pattern.slice(0, -1)) : id === pattern;
  for (const pattern of wanted) {
    if (all.some(({ id }) => matches(pattern, id))) continue;
    throw new UsageError(`${what}: no ${pattern}; there are ${all.map(({ id }) => id).join(", ")}`);
  }
  return wanted.length === 0 ? [...all] : all.filter(({ id }) => wanted.some((pattern) => matches(pattern, id)));
}
