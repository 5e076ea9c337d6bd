import { Bench } from "./bench.ts";
import { makeCertificates } from "./certificates.ts";
import { describeMachine } from "./machine.ts";
import type { Measurement, Values } from "./measurement.ts";
import type { Options } from "./options.ts";
import { findOnPath } from "../support/program-path.ts";
import { makeTempDir } from "../support/temp-dir.ts";
import type { Peer } from "./peer.ts";
import type { PeerDescription, Result, Sample } from "./result.ts";

export interface RoundsOptions {
  readonly options: Options;
  readonly peers: readonly Peer[];
  readonly measurements: readonly Measurement[];
  readonly command: string;
  /** Progress, a line at a time. */
  readonly say: (line: string) => void;
}

/**
 * In each round every measurement in turn, and in each measurement every peer in turn: what is compared is measured within
 * the same minute. The first peer of a round is the second of the next, so that none always follows the same one.
 */
export async function measureAll({ options, peers, measurements, command, say }: RoundsOptions): Promise<Result> {
  const startedAt = new Date();
  const machine = await describeMachine();
  const described = await Promise.all(peers.map(describe));
  const present = peers.filter((_, index) => described[index]!.absent === undefined);
  const missing = (measurement: Measurement): string[] =>
    measurement.programs.filter((name) => findOnPath(name) === undefined);
  const plan = measurements.map((measurement) => ({
    measurement,
    rounds: Math.min(options.rounds, measurement.maxRounds ?? options.rounds),
    peers: present.filter(
      (peer) =>
        measurement.suits(peer) &&
        (peer.onlyGroups === undefined || peer.onlyGroups.includes(measurement.id)) &&
        (!options.isSmoke || options.columns.length > 0 || isInSmoke(peer, measurement)),
    ),
    missing: missing(measurement),
  }));
  const estimate = plan
    .filter((entry) => entry.missing.length === 0)
    .reduce(
      (sum, entry) => sum + entry.rounds * entry.peers.length * entry.measurement.estimateSeconds(options.seconds),
      0,
    );
  say(`${present.length} of ${peers.length} rows, ${options.rounds} rounds: about ${Math.ceil(estimate / 60)} minutes`);
  for (const { id, absent } of described) if (absent !== undefined) say(`${id}: ${absent}`);

  const directory = await makeTempDir("sallyport-bench-");
  const samples: Sample[] = [];
  let bench: Bench | undefined;
  try {
    const certificates = await makeCertificates(directory.path, ["127.0.0.1"]);
    bench = await Bench.open({ seconds: options.seconds, isSmoke: options.isSmoke, certificates });
    for (let round = 0; round < options.rounds; round++) {
      for (const { measurement, rounds, peers: suitable, missing } of plan) {
        if (round >= rounds) continue;
        const start = suitable.length === 0 ? 0 : round % suitable.length;
        for (const peer of [...suitable.slice(start), ...suitable.slice(0, start)]) {
          const values =
            missing.length > 0
              ? absentValues(measurement, `not installed: ${missing.join(", ")}`)
              : await measure(bench, measurement, peer, say);
          samples.push({ round, measurement: measurement.id, peer: peer.id, values });
          const shown = Object.entries(values).map(
            ([id, value]) => `${id} ${typeof value === "number" ? value.toPrecision(4) : value}`,
          );
          say(`round ${round + 1}  ${measurement.id}  ${peer.id}: ${shown.join(", ")}`);
        }
      }
    }
  } finally {
    await bench?.close();
    await directory.remove();
  }
  return {
    startedAt: startedAt.toISOString(),
    durationSeconds: Math.round((Date.now() - startedAt.getTime()) / 1000),
    command,
    rounds: options.rounds,
    seconds: options.seconds,
    isSmoke: options.isSmoke,
    machine,
    peers: described,
    measurements: measurements.map(({ id }) => id),
    samples,
  };
}

/** Every row shows once that it works, and the product that every measurement does. */
function isInSmoke(peer: Peer, measurement: Measurement): boolean {
  return measurement.isSlow !== true && (measurement.id === "bulk" || peer.id === "ours");
}

/** A peer that fails does not end the run: its figures are the reason. */
async function measure(
  bench: Bench,
  measurement: Measurement,
  peer: Peer,
  say: (line: string) => void,
): Promise<Values> {
  try {
    return await measurement.measure(bench, peer);
  } catch (error) {
    say(`${measurement.id} of ${peer.id} failed: ${error instanceof Error ? error.message : String(error)}`);
    return absentValues(measurement, "failed");
  }
}

function absentValues(measurement: Measurement, reason: string): Values {
  return Object.fromEntries(measurement.columns.map(({ id }) => [id, reason]));
}

async function describe(peer: Peer): Promise<PeerDescription> {
  const { id, title, kind, protection, settings, isOurs = false } = peer;
  const isMissing = peer.programs.some((name) => findOnPath(name) === undefined);
  const absent = isMissing ? "not installed" : peer.unavailable?.();
  const version = absent === undefined ? await peer.version() : "";
  return { id, title, kind, protection, settings, version, isOurs, ...(absent === undefined ? {} : { absent }) };
}
