/** What the running edge answers about bans, sources and IP filters on its admin socket. */
import { type AdminRoute, ExitCode, Failure, formatCidr, formatIpAddress } from "@sallyport/host";
import { z } from "zod";
import {
  addBan,
  flushBans,
  getBans,
  listBans,
  readAddress,
  readBlock,
  removeBan,
  trustedWithin,
} from "./ban-commands.ts";
import { checkIp } from "./check-ip.ts";
import { detectorNames } from "./detectors.ts";
import type { Edge } from "./edge.ts";
import type { IpFilter } from "./ip-filter.ts";
import { addressOfKey } from "./source-key.ts";

const addBody = z.strictObject({
  cidr: z.string(),
  ttlMs: z.number().min(0),
  comment: z.string(),
  closeExisting: z.boolean(),
});
const blockBody = z.strictObject({ cidr: z.string() });
const originBody = z.strictObject({ origin: z.string().optional() });
const addressBody = z.strictObject({ address: z.string() });
const clearBody = z.strictObject({ address: z.string().optional() });
const filterBody = z.strictObject({ filter: z.string() });

/** Sources in an answer, those with the most connections first. */
const MAX_LISTED_SOURCES = 1_000;
const MAX_LISTED_RULES = 10_000;

export function admissionRoutes(edge: Edge): AdminRoute[] {
  const { gatekeeper } = edge;
  const { bans } = gatekeeper;
  return [
    {
      method: "POST",
      path: "/bans/add",
      body: addBody,
      handler: async (body) => {
        const { closeExisting, ...ban } = addBody.parse(body);
        const added = await addBan(bans, ban, gatekeeper.now);
        edge.log.warn({ source: added.cidr, ttlMs: ban.ttlMs, comment: added.comment }, "source banned by command");
        const closed = closeExisting || edge.config.admission.closeExisting ? edge.denyConnections() : 0;
        return { ...added, closed, trusted: trustedWithin(edge.ipFilters, added.cidr) };
      },
    },
    {
      method: "POST",
      path: "/bans/remove",
      body: blockBody,
      handler: async (body) => {
        const removed = await removeBan(bans, blockBody.parse(body).cidr, gatekeeper.now);
        // Whoever was banned by mistake begins anew.
        gatekeeper.detectors.clear(readBlock(removed.cidr).address);
        edge.log.warn({ source: removed.cidr, origin: removed.origin }, "ban removed by command");
        return removed;
      },
    },
    {
      method: "POST",
      path: "/bans/get",
      body: blockBody,
      handler: (body) => getBans(bans, blockBody.parse(body).cidr, gatekeeper.now),
    },
    {
      method: "POST",
      path: "/bans/list",
      body: originBody,
      handler: (body) => listBans(bans, originBody.parse(body).origin, gatekeeper.now),
    },
    {
      method: "POST",
      path: "/bans/flush",
      body: originBody,
      handler: async (body) => {
        const { origin } = originBody.parse(body);
        const { removed } = await flushBans(bans, origin);
        edge.log.warn({ removed, origin }, "bans flushed by command");
        return { removed };
      },
    },
    {
      method: "POST",
      path: "/check-ip",
      body: addressBody,
      handler: (body) => checkIp(readAddress(addressBody.parse(body).address), gatekeeper, edge.listeners.values()),
    },
    {
      method: "POST",
      path: "/ip-filters/show",
      body: filterBody,
      handler: (body) => {
        const { filter: name } = filterBody.parse(body);
        const filter = edge.ipFilter(name);
        if (filter === undefined) throw new Failure(ExitCode.usage, "filter", `${name} does not exist`);
        return filterView(name, filter);
      },
    },
    {
      method: "GET",
      path: "/table",
      handler: () => ({
        sources: gatekeeper.admission.busiest(MAX_LISTED_SOURCES).map(({ key, active }) => {
          const address = addressOfKey(key);
          return {
            source: formatIpAddress(address),
            connections: active,
            detectors: gatekeeper.detectors.describe(address, gatekeeper.now) ?? {},
          };
        }),
        connected: gatekeeper.admission.sources,
        rated: gatekeeper.admission.ratedSources,
        watched: gatekeeper.detectors.size,
        tarpitted: gatekeeper.tarpit.size,
        bans: bans.list.size,
        detectors: detectorNames
          .filter((name) => gatekeeper.detectors.watches(name))
          .map((name) => ({ detector: name, trips: 0, dryRun: 0, ...gatekeeper.detectors.counters[name] })),
      }),
    },
    {
      method: "POST",
      path: "/table/clear",
      body: clearBody,
      handler: (body) => {
        const { address: text } = clearBody.parse(body);
        const address = text === undefined ? undefined : readAddress(text);
        return {
          cleared: gatekeeper.detectors.clear(address) + gatekeeper.admission.clearRates(address),
        };
      },
    },
  ];
}

/** A filter's rules with what each has decided since the edge started. */
export function filterView(name: string, filter: IpFilter) {
  return {
    filter: name,
    default: filter.default,
    defaultHits: filter.defaultHits,
    more: filter.rules.length > MAX_LISTED_RULES,
    rules: filter.rules.slice(0, MAX_LISTED_RULES).map(({ action, cidr, trusted, description = "" }, index) => ({
      action,
      cidr: formatCidr(cidr),
      trusted: trusted === true,
      hits: filter.hitsOf(index),
      description,
    })),
  };
}
