/** The commands about bans, sources and IP filters (docs/operations.md). */
import { ExitCode, Failure, parseDuration, printJson, printTable } from "@sallyport/host";
import type { Command } from "commander";
import {
  type AddBan,
  addBan,
  type BanView,
  flushBans,
  getBans,
  listBans,
  removeBan,
  trustedWithin,
} from "./ban-commands.ts";
import { BanStore, steadyNow } from "./ban-store.ts";
import type { CheckIpAnswer, ListenerAnswer } from "./check-ip.ts";
import type { EdgeConfig } from "./config.ts";
import { ipFilters } from "./deployment-settings.ts";

interface Options {
  readonly config: string;
  readonly json?: boolean;
}

/** How a command reaches the edge; made by the command line. */
export interface EdgeAccess {
  /** Asks the running edge, or does it on the files when none runs. */
  readonly throughEdgeOrDirectly: <T>(
    path: string,
    request: { method?: "GET" | "POST"; path: string; body?: object },
    directly: (config: EdgeConfig) => Promise<T> | T,
  ) => Promise<T>;
  readonly ask: (path: string, request: { method?: "GET" | "POST"; path: string; body?: object }) => Promise<unknown>;
  readonly defaultConfig: string;
}

export function addAdmissionCommands(cli: Command, access: EdgeAccess): void {
  const { throughEdgeOrDirectly, ask } = access;
  const finish = (command: Command) =>
    command.option("--config <file>", "configuration file", access.defaultConfig).option("--json", "print JSON");
  const open = (config: EdgeConfig) => BanStore.open(config.stateDir);

  const ban = cli.command("ban").description("addresses and blocks that may not connect");
  finish(ban.command("add <address>").description("ban an address or a CIDR"))
    .option("--ttl <duration>", "how long, such as 10m, 8h or 30d; 0: for good", "1h")
    .option("--comment <text>", "why", "")
    .option("--close-existing", "also reset the connections that it has")
    .action(
      async (
        cidr: string,
        options: Options & { ttl: string; comment: string; closeExisting?: boolean },
      ): Promise<void> => {
        const body: AddBan = { cidr, ttlMs: readTtl(options.ttl), comment: options.comment };
        const closeExisting = options.closeExisting === true;
        const added = await throughEdgeOrDirectly<BanView & { closed: number; trusted: TrustedBlocks }>(
          options.config,
          { path: "/bans/add", body: { ...body, closeExisting } },
          async (config) => {
            const view = await addBan(await open(config), body, steadyNow());
            return { ...view, closed: 0, trusted: trustedWithin(ipFilters(config), view.cidr) };
          },
        );
        if (options.json) return printJson(added);
        const closed = added.closed === 0 ? "" : `, ${added.closed} connections reset`;
        process.stdout.write(`banned ${added.cidr} ${until(added)}${closed}\n`);
        for (const { filter, cidr: block } of added.trusted) {
          process.stderr.write(`note: ${block} is trusted by the IP filter ${filter}; the ban does not concern it\n`);
        }
      },
    );
  finish(ban.command("remove <address>").description("let it in again")).action(
    async (cidr: string, options: Options): Promise<void> => {
      const removed = await throughEdgeOrDirectly<BanView>(
        options.config,
        { path: "/bans/remove", body: { cidr } },
        async (config) => removeBan(await open(config), cidr, steadyNow()),
      );
      if (options.json) return printJson(removed);
      process.stdout.write(`removed the ban of ${removed.cidr} (${removed.origin})\n`);
    },
  );
  finish(ban.command("get <address>").description("bans that concern an address or a CIDR")).action(
    async (cidr: string, options: Options): Promise<void> => {
      const answer = await throughEdgeOrDirectly<{ bans: BanView[] }>(
        options.config,
        { path: "/bans/get", body: { cidr } },
        async (config) => getBans(await open(config), cidr, steadyNow()),
      );
      if (options.json) return printJson(answer);
      if (answer.bans.length === 0) process.stdout.write("not banned\n");
      else printTable(answer.bans.map(banRow));
    },
  );
  finish(ban.command("list").description("all bans"))
    .option("--origin <origin>", "only those of one origin: manual, auto, or auto:DETECTOR")
    .action(async (options: Options & { origin?: string }): Promise<void> => {
      const { origin } = options;
      const answer = await throughEdgeOrDirectly<ReturnType<typeof listBans>>(
        options.config,
        { path: "/bans/list", body: origin === undefined ? {} : { origin } },
        async (config) => listBans(await open(config), origin, steadyNow()),
      );
      if (options.json) return printJson(answer);
      if (answer.total === 0) process.stdout.write("no bans\n");
      else printTable(answer.bans.map(banRow));
      if (answer.more) process.stdout.write(`and ${answer.total - answer.bans.length} more\n`);
    });
  finish(ban.command("flush").description("remove all bans"))
    .option("--origin <origin>", "only those of one origin: manual, auto, or auto:DETECTOR")
    .action(async (options: Options & { origin?: string }): Promise<void> => {
      const { origin } = options;
      const answer = await throughEdgeOrDirectly<{ removed: number }>(
        options.config,
        { path: "/bans/flush", body: origin === undefined ? {} : { origin } },
        async (config) => flushBans(await open(config), origin),
      );
      if (options.json) return printJson(answer);
      process.stdout.write(`removed ${answer.removed} bans\n`);
    });

  finish(
    cli.command("check-ip <address>").description("what would happen to an address on each listener, and why"),
  ).action(async (address: string, options: Options): Promise<void> => {
    const answer = (await ask(options.config, {
      method: "POST",
      path: "/check-ip",
      body: { address },
    })) as CheckIpAnswer;
    if (options.json) return printJson(answer);
    for (const listener of answer.listeners) process.stdout.write(`${answer.address} ${sentence(listener)}\n`);
    process.stdout.write(`${answer.connections} connections of its source are open\n`);
    for (const [detector, count] of Object.entries(answer.detectors)) {
      process.stdout.write(`detector ${detector}: ${count} within its window\n`);
    }
  });

  const ipFilter = cli.command("ip-filter").description("one IP filter");
  finish(
    ipFilter.command("show <name>").description("its rules, and how many connections each has decided over"),
  ).action(async (filter: string, options: Options): Promise<void> => {
    const answer = (await ask(options.config, { method: "POST", path: "/ip-filters/show", body: { filter } })) as {
      default: string;
      defaultHits: number;
      rules: object[];
    };
    if (options.json) return printJson(answer);
    printTable([...answer.rules, { action: answer.default, cidr: "default", hits: answer.defaultHits }]);
  });

  const table = cli.command("table").description("what admission remembers of sources");
  finish(
    table.command("show").description("sources with open connections, the busiest first; sizes and detectors"),
  ).action(async (options: Options): Promise<void> => {
    const answer = (await ask(options.config, { path: "/table" })) as {
      sources: { source: string; connections: number; detectors: object }[];
      connected: number;
      rated: number;
      watched: number;
      tarpitted: number;
      bans: number;
      detectors: object[];
    };
    if (options.json) return printJson(answer);
    const { connected, rated, watched, tarpitted, bans } = answer;
    printTable([{ connected, rated, watched, tarpitted, bans }]);
    printTable(answer.detectors);
    printTable(answer.sources.slice(0, 50));
  });
  finish(
    table.command("clear [address]").description("forget what detectors and rates know of a source, or of all"),
  ).action(async (address: string | undefined, options: Options): Promise<void> => {
    const body = address === undefined ? {} : { address };
    const answer = (await ask(options.config, { method: "POST", path: "/table/clear", body })) as { cleared: number };
    if (options.json) return printJson(answer);
    process.stdout.write(`cleared ${answer.cleared} entries\n`);
  });
}

type TrustedBlocks = ReturnType<typeof trustedWithin>;

function readTtl(text: string): number {
  const ms = text === "0" ? 0 : parseDuration(text);
  if (ms === undefined) {
    throw new Failure(ExitCode.usage, "--ttl", "must be a duration with its unit, such as 10m, 8h or 30d, or 0");
  }
  return ms;
}

function until({ expiresAt }: BanView): string {
  return expiresAt === undefined ? "for good" : `until ${expiresAt}`;
}

function banRow({ cidr, origin, expiresAt, hits, comment }: BanView) {
  return { cidr, origin, expiresAt: expiresAt ?? "never", hits, comment };
}

function sentence({ listener, verdict, reason, rule, ban, forSeconds, trusted, dryRun }: ListenerAnswer): string {
  const dry = dryRun.map((denial) => `; ${denial.reason} would refuse it, but is in dry run`).join("");
  if (verdict === "allow") {
    const by = rule === undefined ? "no rule forbids it" : `by ${rule}${trusted ? ", trusted" : ""}`;
    return `is allowed on ${listener}: ${by}${dry}`;
  }
  const why = ban === undefined && rule !== undefined ? `${reason}, ${rule}` : (rule ?? reason);
  const comment = ban === undefined || ban.comment === "" ? "" : ` "${ban.comment}"`;
  let time = "";
  if (ban !== undefined) time = ban.expiresAt === undefined ? ", for good" : `, until ${ban.expiresAt}`;
  if (forSeconds !== undefined) time += `, ${forSeconds} s from now`;
  return `is refused on ${listener}: ${why}${comment}${time}${dry}`;
}
