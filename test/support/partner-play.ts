/**
 * One partner connection over real loopback sockets, as a schedule says. It is made of the parts of the edge and the agent, put
 * together as `PartnerConnection` and `Routing` do; only the link between the sessions is in memory, and what the looks at first
 * bytes wait for is a length.
 */
import { once } from "node:events";
import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import { setImmediate as nextTurn, setTimeout as delay } from "node:timers/promises";
import { DialError, dial, type Dialled, type DialOptions, Resolver } from "@sallyport/host";
import { CloseCode, ResetCode, Session } from "@sallyport/protocol";
import { type Ending, endingOf, SessionDriver, Splice } from "@sallyport/tunnel";
import { pino } from "pino";
import { DialLimits } from "../../packages/agent/src/dial-limits.ts";
import { Policy } from "../../packages/agent/src/policy.ts";
import { RecordWriter } from "../../packages/agent/src/connection-record.ts";
import type { TargetContext } from "../../packages/agent/src/target-connection.ts";
import { TargetConnections } from "../../packages/agent/src/target-connections.ts";
import type { AgentSession, AgentSessions } from "../../packages/edge/src/agent-sessions.ts";
import type { Attempt, AttemptEvents, Connected } from "../../packages/edge/src/attempt.ts";
import { DirectAttempt } from "../../packages/edge/src/direct-attempt.ts";
import { EarlyBytes } from "../../packages/edge/src/early-bytes.ts";
import { awaitFirstByte, type FirstByteOutcome } from "../../packages/edge/src/first-byte.ts";
import { pacedSocket } from "../../packages/edge/src/paced-socket.ts";
import { peek, type PeekResult } from "../../packages/edge/src/peek.ts";
import { Relay } from "../../packages/edge/src/relay.ts";
import { TokenBucket } from "../../packages/edge/src/token-bucket.ts";
import { TunnelAttempt } from "../../packages/edge/src/tunnel-attempt.ts";
import { Chance } from "./chance.ts";
import { withDeadline } from "./deadline.ts";
import { memoryLinks } from "./memory-link.ts";
import { MAX_PEER_BYTES, type PartnerSchedule } from "./partner-schedule.ts";
import { PseudoRandomBytes } from "./prng.ts";
import { ScheduledPeer } from "./scheduled-peer.ts";
import { startTcpServer } from "./tcp-server.ts";

/** For every wait; a hang guard, and long for a machine with other work. */
const DEADLINE_MS = 30_000;

const fromPartner = new PseudoRandomBytes("partner").next(MAX_PEER_BYTES);
const fromTarget = new PseudoRandomBytes("target").next(MAX_PEER_BYTES);
const HEADER = Buffer.from("PROXY UNKNOWN\r\n");

interface Sessions {
  readonly edge: SessionDriver;
  readonly agent: SessionDriver;
  readonly connections: TargetConnections;
}

/** A partner connection from its arrival at the edge until nothing of it is left. */
export class PartnerPlay {
  /** What was not as it should be. */
  readonly complaints: string[] = [];
  /** When all is over. */
  partner: ScheduledPeer | undefined;
  /** The one to which the partner was joined, when all is over. */
  target: ScheduledPeer | undefined;
  /** Those that the edge told, in their order. */
  readonly endings: Ending[] = [];
  triesFailed = 0;
  isKilled = false;
  readonly #seed: string;
  readonly #schedule: PartnerSchedule;
  readonly #chance: Chance;
  readonly #targets: ScheduledPeer[] = [];
  /** Those of the edge and the agent that have not said 'close'; one that was destroyed in vain never does. */
  readonly #open = new Set<Socket>();
  /** From which port, by the id of the try. */
  readonly #portOfTry = new Map<string, number | undefined>();
  /** Of the agent. */
  readonly #records: { readonly connection: string; readonly code: string }[] = [];
  #opens = 0;
  /** The last try has failed, too. */
  #isGivenUp = false;
  /** The partner's direction has been read to its end, or its socket is closed. */
  #partnerEnded: Promise<void> = Promise.resolve();
  /** The same of the target that was dialled last. */
  #targetEnded: Promise<void> = Promise.resolve();

  constructor(seed: string, schedule: PartnerSchedule) {
    this.#seed = seed;
    this.#schedule = schedule;
    this.#chance = new Chance(`${seed} edge`);
  }

  async run(): Promise<void> {
    const { partner: plan, header } = this.#schedule;
    const server = await startTcpServer((socket) => this.#addTarget(socket));
    const sessions = this.#startSessions(server.port);
    const { partner: socket, accepted } = await connectPartner();
    this.#own(accepted);
    this.#partnerEnded = endOf(accepted);
    const partner = new ScheduledPeer(socket, {
      plan,
      chance: new Chance(`${this.#seed} partner`),
      content: fromPartner,
      ...(header ? { preface: HEADER } : {}),
      expected: fromTarget,
      timeoutMs: DEADLINE_MS,
    });
    try {
      const joined = await this.#carry(accepted, { port: server.port, sessions });
      const target = joined === undefined ? undefined : await this.#targetOf(joined);
      await this.#settle(partner, sessions);
      await this.#judge(partner, target === undefined ? undefined : { target, id: joined ?? "" });
      this.partner = partner;
      this.target = target;
    } catch (error) {
      this.complaints.push(String(error), this.#state(partner));
    } finally {
      for (const left of [socket, ...this.#open]) left.destroy();
      sessions.edge.close(CloseCode.replaced, "over");
      sessions.agent.close(CloseCode.replaced, "over");
      await server.close();
    }
  }

  // ── both ends of the tunnel, and the target ──

  #addTarget(socket: Socket): void {
    const chance = new Chance(`${this.#seed} target ${this.#targets.length}`);
    this.#targets.push(
      new ScheduledPeer(socket, {
        plan: this.#schedule.target,
        chance,
        content: fromTarget,
        expected: fromPartner,
        timeoutMs: DEADLINE_MS,
      }),
    );
  }

  #startSessions(port: number): Sessions {
    const { initialCredit, windowBytes } = this.#schedule;
    const services = new Map([
      [
        "t",
        {
          target: { host: "127.0.0.1", port },
          maxConnections: undefined,
          dialsPerSecond: undefined,
          proxyProtocol: "deny" as const,
        },
      ],
    ]);
    const context: TargetContext = {
      policy: new Policy({ services, allow: [] }),
      limits: new DialLimits({ maxConnections: 100, dialsPerSecond: 100, services }),
      resolver: new Resolver(),
      dial,
      timeouts: { connectMs: DEADLINE_MS, idleMs: 0, halfCloseMs: 0 },
      records: new RecordWriter(pino({}, { write: (line: string) => this.#records.push(JSON.parse(line)) })),
    };
    const connections = new TargetConnections(context);
    const ignoreAll = { onGoAway: ignore, onDetached: ignore, onLinkClosed: ignore, onEnded: ignore };
    const session = { maxStreams: 10, initialCredit, windowBytes };
    const edge = new SessionDriver(new Session({ role: "edge", ...session }), {
      ...ignoreAll,
      onOpen: () => undefined,
    });
    const agent = new SessionDriver(new Session({ role: "agent", ...session }), {
      ...ignoreAll,
      onOpen: (open, stream) => {
        this.#opens += 1;
        connections.context = { ...context, dial: (options) => this.#dial(open.connection, options) };
        return connections.serve("edge", open, stream);
      },
    });
    const linkChance = new Chance(`${this.#seed} link`);
    const links = memoryLinks(() => linkChance.pause());
    edge.attach(links.edge);
    agent.attach(links.agent);
    return { edge, agent, connections };
  }

  /** The agent's. */
  async #dial(id: string, options: DialOptions): Promise<Dialled> {
    await this.#chance.pause();
    if (this.#schedule.failedTries[Number(id)] === "refused") throw new DialError("refused");
    const dialled = await dial(options);
    this.#addDialled(dialled.socket);
    this.#portOfTry.set(id, dialled.socket.localPort);
    if (this.#schedule.connects === "atEnd") await this.#partnersEnd();
    return dialled;
  }

  #own(socket: Socket): void {
    this.#open.add(socket);
    socket.once("close", () => this.#open.delete(socket));
  }

  #addDialled(socket: Socket): void {
    this.#own(socket);
    this.#targetEnded = endOf(socket);
  }

  async #partnersEnd(): Promise<void> {
    await Promise.race([this.#partnerEnded, delay(20)]);
    if (this.#chance.happens(0.3)) await nextTurn();
  }

  // ── the edge ──

  /** Does what a partner connection does; the id of the try in which it was joined to its target, if it was. */
  async #carry(accepted: Socket, to: { port: number; sessions: Sessions }): Promise<string | undefined> {
    if (!(await this.#passLooks(accepted))) {
      accepted.destroy();
      return undefined;
    }
    const { pace } = this.#schedule;
    const bucket = () =>
      new TokenBucket({ perSecond: (pace?.perMs ?? 0) * 1_000, burst: pace?.burst ?? 0 }, performance.now());
    const socket = pace === undefined ? accepted : pacedSocket(accepted, { in: [bucket(), bucket()], out: [bucket()] });
    return withDeadline(this.#route(socket, to), { what: "the target's connection", timeoutMs: DEADLINE_MS });
  }

  /** False: the partner has left. */
  async #passLooks(socket: Socket): Promise<boolean> {
    const { partner, header, firstByte, helloBytes } = this.#schedule;
    const isTrue = partner.ends === "end";
    if (header) {
      const { type } = await this.#look(socket, (bytes) => (bytes.length < HEADER.length ? undefined : HEADER.length));
      this.#expect(type !== "timeout" && (type === "known" || !isTrue), `the look at a header: ${type}`);
      if (type !== "known") return false;
      if (this.#chance.happens(0.5)) await this.#chance.pause();
    }
    if (firstByte) {
      const outcome = await new Promise<FirstByteOutcome>((onOutcome) =>
        awaitFirstByte(socket, { timeoutMs: DEADLINE_MS, onOutcome }),
      );
      const isRight = outcome === "arrived" || (outcome === "closed" && (partner.bytes === 0 || !isTrue));
      this.#expect(isRight, `the wait for a first byte: ${outcome}`);
      if (outcome !== "arrived") return false;
      if (this.#chance.happens(0.5)) await this.#chance.pause();
    }
    if (helloBytes > 0) {
      const { type } = await this.#look(socket, (bytes) => (bytes.length < helloBytes ? undefined : 0));
      const isRight = type === "known" || (type === "ended" && partner.bytes < helloBytes);
      this.#expect(type !== "timeout" && (isRight || !isTrue), `the look at a ClientHello: ${type}`);
      if (type === "closed") return false;
    }
    return true;
  }

  #look(socket: Socket, parse: (bytes: Buffer) => number | undefined): Promise<PeekResult<true>> {
    return new Promise((onDone) =>
      peek<true>(socket, {
        parse: (bytes) => {
          const length = parse(bytes);
          return length === undefined ? undefined : { value: true, length };
        },
        maxBytes: MAX_PEER_BYTES,
        timeoutMs: DEADLINE_MS,
        onDone,
      }),
    );
  }

  /** Tries until the target is connected. Undefined: the partner has left. */
  #route(socket: Socket, to: { port: number; sessions: Sessions }): Promise<string | undefined> {
    const { failedTries, way } = this.#schedule;
    return new Promise((resolve) => {
      let early: EarlyBytes | undefined;
      let attempt: Attempt | undefined;
      let isOver = false;
      const onPartnerGone = () => {
        isOver = true;
        attempt?.cancel(ResetCode.cancelled);
        socket.resetAndDestroy();
        resolve(undefined);
      };
      const next = async (at: number): Promise<void> => {
        // It waits for an agent, or for a target that has room; meanwhile its socket may fill.
        await this.#chance.pause();
        if (this.#chance.happens(0.5)) await delay(this.#chance.below(12));
        if (isOver) return;
        if (way === "tunnel") early ??= new EarlyBytes(socket);
        let isTried = true;
        const events: AttemptEvents = {
          onConnected: (connected) => {
            isTried = false;
            isOver = true;
            socket.removeListener("close", onPartnerGone);
            this.#join(socket, connected, { early, connections: to.sessions.connections });
            resolve(String(at));
          },
          onFailed: () => {
            isTried = false;
            this.triesFailed += 1;
            if (at < failedTries.length) return void next(at + 1);
            isOver = true;
            this.#isGivenUp = true;
            socket.removeListener("close", onPartnerGone);
            socket.resetAndDestroy();
            resolve(undefined);
          },
        };
        attempt = this.#attempt(events, { ...to, early, id: String(at) });
        attempt.start();
        if (failedTries[at] !== "givenUp") return;
        if (this.#chance.happens(0.5)) await this.#chance.pause();
        if (!isTried || isOver) return;
        attempt.cancel(ResetCode.targetTimeout);
        events.onFailed({ ending: { code: "sC", reason: "given up" }, blame: "target" });
      };
      if (socket.destroyed) return onPartnerGone();
      socket.once("close", onPartnerGone);
      void next(0);
    });
  }

  #attempt(
    events: AttemptEvents,
    { early, id, port, sessions }: { early: EarlyBytes | undefined; id: string; port: number; sessions: Sessions },
  ): Attempt {
    const connectTimeoutMs = DEADLINE_MS;
    if (early === undefined) {
      return new DirectAttempt({ host: "127.0.0.1", port, resolver: new Resolver(), connectTimeoutMs, events });
    }
    const agent = { agent: "agent", leaving: false } as AgentSession;
    // What a try asks of the sessions, when one agent is connected.
    const one: Pick<AgentSessions, "open" | "pick"> = {
      open: (_via, request, handler) => sessions.edge.open(request, (stream) => handler(stream, agent)),
      pick: () => agent,
    };
    return new TunnelAttempt({
      sessions: one as AgentSessions,
      via: { tunnel: "", client: "agent" },
      request: { connection: id, target: "t", deployment: "d", partner: "192.0.2.1:40000" },
      early,
      connectTimeoutMs,
      events: { ...events, onOpened: ignore },
    });
  }

  #join(
    partner: Socket,
    connected: Connected,
    { early, connections }: { early: EarlyBytes | undefined; connections: TargetConnections },
  ): void {
    const timeouts = { idleTimeoutMs: 0, halfCloseTimeoutMs: 0 };
    if (connected.type === "direct") {
      const { socket: target } = connected;
      this.#addDialled(target);
      const relay = new Relay({ partner, target, ...timeouts, onEnd: (ending) => this.endings.push(ending) });
      void this.#kill(() => relay.abort(ResetCode.killed));
      return;
    }
    const before = early?.handOver();
    const splice = new Splice(partner, connected.stream, {
      ...timeouts,
      ...(before === undefined ? {} : { before }),
      onEnd: (end) => this.endings.push(endingOf(end, { side: "edge", connected: true })),
    });
    connected.stream.handOver(splice);
    splice.start();
    const isEdges = this.#schedule.killedAt === "partnersEnd";
    void this.#kill(() => (isEdges ? splice.abort(ResetCode.killed) : connections.shutDown()));
  }

  async #kill(abort: () => void): Promise<void> {
    const { killedAt } = this.#schedule;
    if (killedAt === undefined) return;
    await (killedAt === "partnersEnd" ? this.#partnerEnded : this.#targetEnded);
    // An end is certain after two turns.
    for (let turns = 1 + this.#chance.below(4); turns > 0; turns -= 1) await nextTurn();
    if (this.endings.length > 0) return;
    this.isKilled = true;
    abort();
  }

  // ── what came of it ──

  #expect(isRight: boolean, complaint: string): void {
    if (!isRight) this.complaints.push(complaint);
  }

  /** The target that was dialled in this try. */
  async #targetOf(id: string): Promise<ScheduledPeer | undefined> {
    // There is only one try of a target that the edge dials itself.
    const isIt = ({ remotePort }: ScheduledPeer) =>
      this.#schedule.way === "direct" || remotePort === this.#portOfTry.get(id);
    await this.#until(() => this.#targets.some(isIt), "the target's end of the connection");
    return this.#targets.find(isIt);
  }

  /** Waits until nothing moves any more, and nothing is left. */
  async #settle(partner: ScheduledPeer, { edge, agent, connections }: Sessions): Promise<void> {
    const peers = [partner, ...this.#targets];
    await Promise.all([
      ...peers.map(({ played }) => withDeadline(played, { what: "the end of a peer's plan", timeoutMs: DEADLINE_MS })),
      ...peers.map(({ ending }) => ending),
      this.#until(() => this.#open.size === 0, "the close of the sockets of edge and agent"),
      this.#until(() => connections.live.size === 0, "the end of the agent's connections"),
      this.#until(() => edge.session.streamCount + agent.session.streamCount === 0, "the end of the streams"),
    ]);
    // What would be told a second time.
    await nextTurn();
    await nextTurn();
  }

  async #judge(
    partner: ScheduledPeer,
    joined: { readonly target: ScheduledPeer; readonly id: string } | undefined,
  ): Promise<void> {
    const records = JSON.stringify(this.#records.map(({ connection, code }) => `${connection} ${code}`));
    const codes = JSON.stringify(this.endings.map(({ code }) => code));
    this.#expect(this.#records.length === this.#opens, `${this.#opens} OPENs and the records ${records}`);
    this.#expect(this.endings.length === (joined === undefined ? 0 : 1), `the endings ${codes}`);
    for (const target of this.#targets) await this.#judgeDirection("target", { from: partner, to: target, joined });
    if (this.#isGivenUp) {
      // Its reset came before ACCEPT was sent.
      this.#expect(this.#targets.at(-1)?.hasReset === true, "the last try failed, though the target did not reset");
      this.#expect(
        (await partner.ending).how !== "end",
        "a partner whose target could not be connected was told an end",
      );
      return;
    }
    if (joined === undefined) {
      const mayLeave = partner.plan.ends !== "end" || (partner.plan.bytes === 0 && this.#schedule.firstByte);
      this.#expect(mayLeave, "a partner that stayed was not joined to its target");
      return;
    }
    const { target, id } = joined;
    await this.#judgeDirection("partner", { from: target, to: partner, joined });
    const code = this.endings[0]?.code ?? "";
    const mayBegin = [
      { is: [partner, target].every(({ plan, hasReset }) => !hasReset || plan.ends === "endAndReset"), with: "-" },
      { is: partner.hasReset, with: "C" },
      { is: target.hasReset, with: "S" },
      { is: this.isKilled, with: "K" },
      { is: this.isKilled && this.#schedule.way === "tunnel", with: "L" },
    ];
    this.#expect(
      mayBegin.some((each) => each.is && code.startsWith(each.with)),
      `the ending ${code}`,
    );
    const record = this.#records.find(({ connection }) => connection === id);
    if (this.#schedule.way === "direct" || this.isKilled || partner.hasReset || target.hasReset) return;
    this.#expect(record?.code === "--", `the records ${records}`);
  }

  async #judgeDirection(
    name: "partner" | "target",
    { from, to, joined }: { from: ScheduledPeer; to: ScheduledPeer; joined: { target: ScheduledPeer } | undefined },
  ): Promise<void> {
    const { how, code } = await to.ending;
    const told = `the ${name} was told ${how} ${code ?? ""} after ${to.receivedBytes} of ${from.sentBytes} bytes`;
    this.#expect(to.wrongAt === undefined, `the ${name} received other bytes than those at ${to.wrongAt}`);
    this.#expect(to.receivedBytes <= from.sentBytes, told);
    // Of a try that was given up the target hears nothing, or its beginning.
    const isJoined = name === "partner" || to === joined?.target;
    if (how === "end") {
      const isWhole = from.hasEnded && to.receivedBytes === from.plan.bytes;
      this.#expect(isWhole || (!isJoined && to.receivedBytes === 0), told);
    } else if (how === "error") {
      this.#expect(!isJoined || this.isKilled || from.hasReset || to.hasReset, told);
    } else this.#expect(to.hasReset, told);
  }

  /** For one that stands still. */
  #state(partner: ScheduledPeer): string {
    const peers = [partner, ...this.#targets].map(({ sentBytes, receivedBytes, hasEnded, hasReset, socket }) =>
      JSON.stringify({ sentBytes, receivedBytes, hasEnded, hasReset, isClosed: socket.closed }),
    );
    return `partner and targets: ${peers.join(" ")}, ended ${JSON.stringify(this.endings)}`;
  }

  async #until(condition: () => boolean, what: string): Promise<void> {
    const endsAt = performance.now() + DEADLINE_MS;
    while (!condition()) {
      if (performance.now() > endsAt) throw new Error(`${what}: not within ${DEADLINE_MS} ms`);
      await delay(1);
    }
  }
}

/** A partner and its socket at the edge, as a listener hands it over. */
async function connectPartner(): Promise<{ partner: Socket; accepted: Socket }> {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true, highWaterMark: 65_536 });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const partner = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
  partner.on("error", ignore);
  const [accepted] = (await once(server, "connection")) as [Socket];
  accepted.on("error", ignore);
  server.close();
  return { partner, accepted };
}

/** Its incoming half has been read to its end, or it is closed. */
async function endOf(socket: Socket): Promise<void> {
  await new Promise<void>((resolve) => {
    socket.once("end", resolve);
    socket.once("close", () => resolve());
  });
}

function ignore(): void {}
