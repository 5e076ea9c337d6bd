/**
 * Which of several routes a new connection takes. Pure: what is known of the routes goes in, one of them comes out; only
 * `roundRobin` leaves something behind, the turn of each route.
 *
 * Every way respects weights: a route of weight 2 gets twice as many as one of weight 1. Routes of weight 0 are not asked.
 */
import { createHash } from "node:crypto";

export const BALANCES = ["roundRobin", "leastConn", "ipHash", "random2", "first"] as const;
export type Balance = (typeof BALANCES)[number];

/** What balancing knows of a route. */
export interface Balanced {
  /** Of its name, the same in every process: `nameHash`. */
  readonly hash: number;
  /** Above 0. */
  readonly weight: number;
  /** Connections on it now, those that are being opened included. */
  readonly active: number;
  /** Belongs to `roundRobin`; begins at 0. */
  turn: number;
}

export interface BalanceInput {
  readonly balance: Balance;
  /** Where the partner comes from: what `ipHash` goes by. */
  readonly source: string;
  /** 0 up to and without 1. */
  readonly random: () => number;
}

/** Undefined when there is none to choose from. */
export function choose<R extends Balanced>(routes: readonly R[], input: BalanceInput): R | undefined {
  if (routes.length < 2) return routes[0];
  switch (input.balance) {
    case "roundRobin":
      return nextInTurn(routes);
    case "leastConn":
      return nextInTurn(leastLoaded(routes));
    case "ipHash":
      return highestScore(routes, nameHash(input.source));
    case "random2":
      return lessLoaded(weightedDraw(routes, input.random), weightedDraw(routes, input.random));
    case "first":
      return routes[0];
  }
}

/** 32 bits that spread evenly, the same on every machine: two edges with one configuration choose alike. */
export function nameHash(name: string): number {
  return createHash("sha256").update(name, "latin1").digest().readUInt32BE();
}

/**
 * Smooth weighted round robin, as nginx has it: each route earns its weight, the richest is taken and pays what all have
 * earned. Turns of different routes are interleaved, and a route that is left out for a while owes nothing when it is back.
 */
function nextInTurn<R extends Balanced>(routes: readonly R[]): R | undefined {
  let total = 0;
  let best: R | undefined;
  for (const route of routes) {
    total += route.weight;
    route.turn += route.weight;
    if (best === undefined || route.turn > best.turn) best = route;
  }
  if (best !== undefined) best.turn -= total;
  return best;
}

function load(route: Balanced): number {
  return route.active / route.weight;
}

function leastLoaded<R extends Balanced>(routes: readonly R[]): R[] {
  let least = Number.POSITIVE_INFINITY;
  for (const route of routes) least = Math.min(least, load(route));
  return routes.filter((route) => load(route) === least);
}

/**
 * Weighted rendezvous: each route draws a number from the source and its own name, and the highest wins. When a route
 * goes, only the sources that it had go elsewhere; when one comes, it takes its share and nothing else moves. The score
 * `weight / -ln(u)` gives each route as many sources as its weight says (Schindelhauer, Schomaker 2005).
 */
function highestScore<R extends Balanced>(routes: readonly R[], sourceHash: number): R | undefined {
  let best: R | undefined;
  let bestScore = 0;
  for (const route of routes) {
    const score = route.weight / -Math.log((mix(sourceHash ^ route.hash) + 0.5) / 2 ** 32);
    if (best === undefined || score > bestScore) {
      best = route;
      bestScore = score;
    }
  }
  return best;
}

/** The finalizer of MurmurHash3: every bit of the input turns half of the output's. */
function mix(value: number): number {
  let h = value;
  h = Math.imul(h ^ (h >>> 16), 0x85eb_ca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2_ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

function weightedDraw<R extends Balanced>(routes: readonly R[], random: () => number): R | undefined {
  let left = random() * routes.reduce((sum, { weight }) => sum + weight, 0);
  for (const route of routes) {
    left -= route.weight;
    if (left < 0) return route;
  }
  return routes.at(-1);
}

function lessLoaded<R extends Balanced>(a: R | undefined, b: R | undefined): R | undefined {
  return a === undefined || (b !== undefined && load(b) < load(a)) ? b : a;
}
