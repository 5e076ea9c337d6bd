/** The table of hostile frames as a list of single attacks, and what one of them came to. */
import {
  type HandshakeVariant,
  type Outcome,
  type Position,
  rows,
  type State,
  states,
  type Variant,
  type Victim,
  victims,
} from "./hostile-frames.ts";

/** One thing that is done to one victim in one state. */
export interface Attack {
  readonly id: string;
  readonly victim: Victim;
  readonly state: State;
  readonly what: string;
  readonly expect: Outcome;
  readonly variant?: Variant;
  readonly handshake?: HandshakeVariant["handshake"];
}

/** A cell of the table in which nothing is done, and why. */
export interface EmptyCell {
  readonly id: string;
  readonly victim: Victim;
  readonly state: State;
  readonly why: string;
}

/** Where nothing of a link is there yet. */
const nowhere: Omit<Position, "victim"> = {
  stream: 1,
  sent: 1,
  received: 1,
  limit: 65_536,
  maxStreams: 10,
  foreignSession: "0".repeat(32),
};

/** Bytes as they are sent where no link is, so that it does not matter what they say. */
export function unlinkedBytes(variant: Variant, victim: Victim): Uint8Array {
  return variant.bytes({ ...nowhere, victim }, 0);
}

/** Every cell of the table, once. */
export function cells(): { readonly attacks: readonly Attack[]; readonly empty: readonly EmptyCell[] } {
  const attacks: Attack[] = [];
  const empty: EmptyCell[] = [];
  for (const row of rows) {
    for (const victim of victims) {
      for (const state of states) {
        const cell = row[victim][state];
        const place = { id: row.id, victim, state };
        if (cell === "raw") attacks.push(rawAttack(place, row[victim]["before greeting"]));
        else if (typeof cell === "string") empty.push({ ...place, why: cell });
        else {
          for (const one of cell) {
            const more = "handshake" in one ? { handshake: one.handshake } : { variant: one };
            attacks.push({ ...place, what: one.what, expect: one.expect, ...more });
          }
        }
      }
    }
  }
  return { attacks, empty };
}

function rawAttack(place: Pick<Attack, "id" | "victim" | "state">, greeting: readonly Variant[] | string): Attack {
  const [variant] = typeof greeting === "string" ? [] : greeting;
  if (variant === undefined) throw new Error(`${place.id}: nothing to send before authentication`);
  const expect: Outcome =
    place.victim === "edge" ? { is: "refused", status: 0 } : { is: "hung up", reason: "protocol" };
  return { ...place, what: `${variant.what}, in the place of a handshake`, expect, variant };
}

export function describeOutcome(outcome: Outcome): string {
  switch (outcome.is) {
    case "ignored":
      return "ignored";
    case "reset":
      return `reset ${outcome.code}`;
    case "closed":
      return `closed ${outcome.code}`;
    case "refused":
      return `refused ${outcome.status}`;
    case "hung up":
      return `hung up: ${outcome.reason}`;
    case "cut":
    case "served":
      return outcome.is;
  }
}

export function describeAttack({ id, victim, state, what }: Attack): string {
  return `${id} ${victim}, ${state}: ${what}`;
}

/** How an attack ended, as `describeOutcome` says it, and where it came from, for the victim's log. */
export interface Result {
  readonly outcome: string;
  /** Address of the attacker as the victim logs it. */
  readonly source: string;
}
