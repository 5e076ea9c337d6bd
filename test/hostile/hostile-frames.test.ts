/**
 * The table of hostile frames, driven: each attack against a real edge or a real agent, with honest traffic through both
 * beside it all the time. The edge's attackers are agents with valid tokens, one for each of some clients; the agent's are
 * edges that it was paired with.
 */
import { existsSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { closeReason, resetReason } from "../../packages/protocol/src/index.ts";
import { writeCredentials } from "../../packages/agent/src/credentials-file.ts";
import { certificatePin, createToken, deriveVerifier, encodeToken } from "../../packages/tunnel/src/index.ts";
import { pollUntil } from "../support/deadline.ts";
import { findFreePort } from "../support/free-port.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import { testCertificate } from "../support/tunnel-ends.ts";
import { AgentAttacker, HandshakeAttacker } from "./agent-attacker.ts";
import { type Attack, cells, describeAttack, describeOutcome, type Result } from "./attack.ts";
import { EdgeAttacker } from "./edge-attacker.ts";
import { HonestPartner } from "./honest-partner.ts";
import { rows, states, victims } from "./hostile-frames.ts";
import { MarkedTarget } from "./marked-target.ts";
import { credentialsOf, destroyRawAgents, RawAgent } from "./raw-agent.ts";

const EDGE_ATTACKERS = 4;
/** An agent has at most sixteen edges, one of which is the honest one. */
const AGENT_ATTACKERS = 11;
const HANDSHAKE_ATTACKERS = 4;
/** What a process that has been busy keeps of its heap is no leak. */
const MAX_GROWTH_BYTES = 96 * 1024 ** 2;

const { attacks, empty } = cells();
const attacksOn = (victim: string, isHandshake: boolean) =>
  attacks.filter((one) => one.victim === victim && (one.state === "before authentication") === isHandshake);

describe("the table", () => {
  test("has the 51 kinds, each in four states against both ends, and says why of each cell in which nothing is done", () => {
    expect(rows.map(({ id }) => id)).toHaveLength(51);
    expect(new Set(rows.map(({ id }) => id)).size).toBe(51);
    expect(rows.filter(({ id }) => id.startsWith("W"))).toHaveLength(14);
    const driven = new Set(attacks.map(({ id, victim, state }) => [id, victim, state].join(" ")));
    expect(driven.size + empty.length).toBe(51 * states.length * victims.length);
    expect({ cells: driven.size, attacks: attacks.length, empty: empty.length }).toMatchInlineSnapshot(`
      {
        "attacks": 985,
        "cells": 343,
        "empty": 65,
      }
    `);
    for (const { why } of empty) expect(why.length).toBeGreaterThan(10);
    const paths = empty.flatMap(({ why }) => /test\/\S+\.test\.ts/.exec(why) ?? []);
    expect(paths.length).toBeGreaterThan(0);
    for (const path of paths) expect(existsSync(new URL(`../../${path}`, import.meta.url))).toBe(true);
  });

  test("expects no code that docs/protocol.md does not know", async () => {
    const document = await readFile(new URL("../../docs/protocol.md", import.meta.url), "utf8");
    const words = attacks.flatMap(({ expect: outcome }) => {
      if (outcome.is === "closed") return [`| ${outcome.code} | ${closeReason(outcome.code) ?? ""}`];
      if (outcome.is === "reset") return [`| ${outcome.code} | ${resetReason(outcome.code)} |`];
      return outcome.is === "refused" && outcome.status > 0 ? [`${outcome.status} (`] : [];
    });
    expect(words.length).toBeGreaterThan(300);
    expect([...new Set(words)].filter((word) => !document.includes(word))).toEqual([]);
  });
});

describe("driven", () => {
  let target: MarkedTarget;
  let pair: SallyportPair;
  let foreign: RawAgent;
  let keepForeign: NodeJS.Timeout;
  let honest: HonestPartner;
  let before: Record<string, number>;
  let pids: number[];
  const edgeAttackers: EdgeAttacker[] = [];
  const agentAttackers: AgentAttacker[] = [];
  const handshakeAttackers: HandshakeAttacker[] = [];
  /** The log of both, without connection records and what is not of an attack. */
  const log: { readonly program: string; readonly line: string }[] = [];

  beforeAll(async () => {
    // Later Nodes let the young generation grow by more than the bound, which would hide what grows here.
    process.env.NODE_OPTIONS = "--max-semi-space-size=8";
    target = await MarkedTarget.start();
    const heartbeat = { interval: "500ms", timeout: "2s" };
    pair = await SallyportPair.start({
      services: { echo: `127.0.0.1:${target.port}` },
      deployments: [{ name: "honest", target: "echo" }],
      links: 1,
      edgeConfig: { heartbeat, resumeTimeout: "1s" },
      agentConfig: { heartbeat, limits: { maxStreams: 40 }, reconnect: { min: "10ms", max: "100ms" } },
      onLine: (program, line) => {
        if (!line.includes('"msg":"connection"')) log.push({ program, line });
      },
    });
    const lines = await addClients();
    const [foreignLine = "", ...others] = lines.map((line) => credentialsOf(line));
    foreign = await RawAgent.greeted(foreignLine as Parameters<typeof RawAgent.greeted>[0]);
    keepForeign = setInterval(() => foreign.send({ type: "pong", token: 0 }), 200);
    const { session } = await foreign.awaitFrame("welcome");
    for (const [at, credentials] of others.entries()) {
      const { port } = partnerPorts[at]!;
      edgeAttackers.push(
        new EdgeAttacker({
          credentials: credentials as typeof foreignLine & object,
          partnerPort: port,
          foreignSession: session,
        }),
      );
    }
    await addEdges();
    pids = [pair.edge.process.pid, pair.agent.process.pid];
    honest = await HonestPartner.start(pair.listenerPort("honest"));
    before = await residentBytes();
  }, 120_000);

  afterAll(async () => {
    delete process.env.NODE_OPTIONS;
    clearInterval(keepForeign);
    destroyRawAgents();
    await honest?.stop();
    await pair?.stop();
    await Promise.all([...agentAttackers, ...handshakeAttackers].map((attacker) => attacker.close()));
    await target?.close();
  });

  const partnerPorts: { readonly name: string; readonly port: number }[] = [];

  /** A client for each attacker of the edge, with a deployment of its own, and one more; resolves with pairing lines. */
  async function addClients(): Promise<string[]> {
    const config = JSON.parse(await readFile(pair.edge.configPath, "utf8"));
    config.clients.push({ name: "foreign" });
    for (let at = 0; at < EDGE_ATTACKERS; at += 1) {
      const name = `evil-${at}`;
      const port = await findFreePort();
      partnerPorts.push({ name, port });
      config.clients.push({ name });
      config.listeners.push({ name, listen: `127.0.0.1:${port}` });
      config.deployments.push({ name, listener: name, target: "echo", via: { tunnel: "dmz", client: name } });
    }
    await writeFile(pair.edge.configPath, JSON.stringify(config));
    const flags = ["--config", pair.edge.configPath];
    await pair.command("edge", ["reload", ...flags]);
    const pairingLines: string[] = [];
    for (const name of ["foreign", ...partnerPorts.map((one) => one.name)]) {
      pairingLines.push(await pair.command("edge", ["pair", name, ...flags]));
    }
    return pairingLines;
  }

  /** Pairs the agent with every hostile edge and starts it again. */
  async function addEdges(): Promise<void> {
    const tls = testCertificate();
    const token = createToken();
    const verifier = deriveVerifier(token, "lan");
    const der = Buffer.from(tls.cert.replaceAll(/-----[A-Z ]+-----|\s/g, ""), "base64");
    for (let at = 0; at < AGENT_ATTACKERS; at += 1)
      agentAttackers.push(await AgentAttacker.start({ tls, verifier, target }));
    for (let at = 0; at < HANDSHAKE_ATTACKERS; at += 1)
      handshakeAttackers.push(await HandshakeAttacker.start({ tls, verifier }));
    const config = JSON.parse(await readFile(pair.agent.configPath, "utf8"));
    for (const { port } of [...agentAttackers, ...handshakeAttackers]) {
      const credentialsFile = join(pair.directory, `hostile-${port}.credentials`);
      await writeCredentials(credentialsFile, {
        address: `127.0.0.1:${port}`,
        client: "lan",
        token: encodeToken(token),
        pin: certificatePin(der),
        certificate: der.toString("base64"),
      });
      config.edges.push({ credentialsFile });
    }
    await writeFile(pair.agent.configPath, JSON.stringify(config));
    await pair.agent.process.stop();
    await pair.restartAgent();
    // The clients of the attackers have no agent, so the edge is not ready as a whole.
    await pollUntil(
      async () => (/^edge_tunnel_links\{client="lan"\} 1$/m.test(await pair.edgeMetrics()) ? true : undefined),
      { what: "the honest link", timeoutMs: 20_000 },
    );
  }

  async function residentBytes(): Promise<Record<string, number>> {
    const [edge, agent] = await Promise.all([pair.edgeMetrics(), pair.agentMetrics()]);
    const of = (text: string) => Number(/^process_resident_memory_bytes (\S+)$/m.exec(text)?.[1]);
    return { edge: of(edge), agent: of(agent) };
  }

  /** Each attacker takes the next attack when it is through with the last; resolves with what went wrong. */
  async function drive(
    work: readonly Attack[],
    attackers: readonly { run(attack: Attack): Promise<Result> }[],
    check: (attack: Attack, result: Result) => string | undefined = () => undefined,
  ): Promise<string[]> {
    const queue = [...work];
    const wrong: string[] = [];
    await Promise.all(
      attackers.map(async (attacker) => {
        for (let attack = queue.shift(); attack !== undefined; attack = queue.shift()) {
          try {
            const result = await attacker.run(attack);
            const expected = describeOutcome(attack.expect);
            const fault =
              result.outcome === expected ? check(attack, result) : `${result.outcome} instead of ${expected}`;
            if (fault !== undefined) wrong.push(`${describeAttack(attack)}: ${fault}`);
          } catch (error) {
            wrong.push(`${describeAttack(attack)}: ${String(error)}`);
          }
        }
      }),
    );
    return wrong;
  }

  async function expectHonestService(): Promise<void> {
    expect(await honest.stop()).toBeUndefined();
    honest = await HonestPartner.start(pair.listenerPort("honest"));
    for (const [at, { process }] of [pair.edge, pair.agent].entries()) {
      expect(process.hasEnded).toBe(false);
      expect(process.pid).toBe(pids[at]);
      expect(process.stderr).toBe("");
    }
    expect(log.filter(({ line }) => /"level":"(?:error|fatal)"|[Uu]nhandled|[Uu]ncaught/.test(line))).toEqual([]);
  }

  test("every attack on the edge ends as the table says, and a line tells of each link that it cost", async () => {
    const costly: { attack: Attack; source: string }[] = [];
    const wrong = await drive(attacksOn("edge", false), edgeAttackers, (attack, { source, outcome }) => {
      if (outcome.startsWith("closed")) costly.push({ attack, source });
      return undefined;
    });
    expect(wrong).toEqual([]);
    const faults = await silentOnes(costly, ({ source }, code) => ({
      mentions: `"${source}"`,
      code: `"code":${code},`,
    }));
    expect(faults).toEqual([]);
    await expectHonestService();
  }, 240_000);

  test("nobody becomes an agent of the edge by any of it", async () => {
    const work = attacksOn("edge", true);
    expect(await drive(work, edgeAttackers)).toEqual([]);
    const told = log
      .filter(({ line }) => line.includes('"msg":"tunnel connection refused"'))
      .map(({ line }) => JSON.parse(line));
    const refusals = told.length + told.reduce((sum, { suppressed = 0 }) => sum + suppressed, 0);
    // What is not told yet is added to the next line.
    expect(refusals).toBeGreaterThan(work.length / 2);
    await expectHonestService();
  }, 240_000);

  test("every attack on the agent ends as the table says, and a line tells of each session that it cost", async () => {
    const costly: { attack: Attack; source: string }[] = [];
    const wrong = await drive(attacksOn("agent", false), agentAttackers, (attack, { source, outcome }) => {
      if (outcome.startsWith("closed 44") && attack.state !== "before greeting") costly.push({ attack, source });
      return undefined;
    });
    expect(wrong).toEqual([]);
    const codes = (list: string[]) => list.map((code) => code.slice(-4)).sort();
    // Besides, each attack that cost nothing ended with a session that this edge has forgotten, or that nobody resumed.
    const toldOf = (port: number) =>
      codes(
        log
          .filter(({ program, line }) => program === "agent" && line.includes('"msg":"session ended"'))
          .filter(({ line }) => line.includes(`"127.0.0.1:${port}"`))
          .map(({ line }) => String(JSON.parse(line).code))
          .filter((code) => code !== "4404" && code !== "4408"),
      );
    for (const { port } of agentAttackers) {
      const own = codes(
        costly
          .filter(({ source }) => source === `127.0.0.1:${port}`)
          .map(({ attack }) => describeOutcome(attack.expect)),
      );
      // The last line may still be on its way.
      await pollUntil(() => toldOf(port).length >= own.length || undefined, { what: "a line for each session" });
      expect(toldOf(port)).toEqual(own);
    }
    await expectHonestService();
  }, 240_000);

  test("nothing in the place of a handshake makes the agent serve, and it knows why", async () => {
    const failures = async (port: number): Promise<Map<string, number>> => {
      const found = new Map<string, number>();
      const pattern = /^agent_tunnel_connect_failures_total\{edge="127\.0\.0\.1:(\d+)",reason="(\w+)"\} (\d+)$/gm;
      for (const [, edge, reason, count] of (await pair.agentMetrics()).matchAll(pattern)) {
        if (Number(edge) === port) found.set(reason!, Number(count));
      }
      return found;
    };
    const withReasons = handshakeAttackers.map((attacker) => ({
      run: async (attack: Attack): Promise<Result> => {
        let known = new Map<string, number>();
        const result = await attacker.run(attack, async () => {
          known = await failures(attacker.port);
        });
        const reason = await pollUntil(
          async () => {
            const now = await failures(attacker.port);
            return [...now].find(([name, count]) => count > (known.get(name) ?? 0))?.[0];
          },
          { what: "a reason in the metrics" },
        );
        return { ...result, outcome: `hung up: ${reason}` };
      },
    }));
    // After each wrong proof the agent waits five seconds, after a wrong version thirty: those come last.
    const work = attacksOn("agent", true).toSorted(
      (one, two) => Number(one.handshake !== undefined) - Number(two.handshake !== undefined),
    );
    const wrong = await drive(work, withReasons);
    // Bytes behind an answer that proves nothing make no difference: the proof is looked at first.
    expect(
      wrong.filter(
        (line) => !line.endsWith("in the place of a handshake: hung up: proof instead of hung up: protocol"),
      ),
    ).toEqual([]);
    const told = log.filter(({ program, line }) => program === "agent" && line.includes('"msg":"not connected"'));
    expect(told.length).toBeGreaterThan(0);
    await expectHonestService();
  }, 300_000);

  test("memory is as before", async () => {
    const grown = await pollUntil(
      async () => {
        const now = await residentBytes();
        const bytes = Math.max(now["edge"]! - before["edge"]!, now["agent"]! - before["agent"]!);
        return bytes < MAX_GROWTH_BYTES ? bytes : undefined;
      },
      { what: "memory back", timeoutMs: 30_000 },
    );
    expect(grown).toBeLessThan(MAX_GROWTH_BYTES);
    await expectHonestService();
  }, 60_000);

  /** Those of whose end no line of the edge tells, with its source and its code. */
  async function silentOnes(
    costly: readonly { attack: Attack; source: string }[],
    find: (one: { attack: Attack; source: string }, code: number) => { mentions: string; code: string },
  ): Promise<string[]> {
    // The last lines may still be on their way.
    await new Promise((resolve) => setTimeout(resolve, 500));
    const faults: string[] = [];
    for (const one of costly) {
      const { expect: outcome } = one.attack;
      if (outcome.is !== "closed") continue;
      const { mentions, code } = find(one, outcome.code);
      const lines = log.filter(({ program, line }) => program === "edge" && line.includes(mentions));
      const telling = lines.filter(
        ({ line }) => line.includes(code) && /"reason":"[^"]+"/.test(line) && line.includes('"warn"'),
      );
      // A greeting that fails for another reason than form is told without blame.
      const isBlamed = outcome.code !== 4404 && outcome.code !== 4408 && outcome.code !== 4409;
      if (isBlamed ? telling.length !== 1 : lines.length === 0) {
        faults.push(`${describeAttack(one.attack)}: ${lines.map(({ line }) => line).join(" ")}`);
      }
    }
    return faults;
  }
});
