import type { Peer } from "../peer.ts";

/** No program in between: partners reach the target's own port. What the machine can do at all. */
export const loopback: Peer = {
  id: "loopback",
  title: "direct, no program between",
  kind: "floor",
  protection: "none",
  settings: "",
  programs: [],
  version: async () => "",
  start: async (run) => new Map(run.routes.map(({ name, port }) => [name, port])),
};
