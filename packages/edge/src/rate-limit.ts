/**
 * How often something may happen, as the generic cell rate algorithm (ITU-T I.371): the whole state is one number, the
 * theoretical time of arrival, so that a table can hold it for each of many sources. It admits exactly what a token
 * bucket of `burst` tokens does that gains `perSecond` tokens a second.
 */
export interface RateSettings {
  /** Events a second in the long run; a fraction is fine (0.1: one in ten seconds). */
  readonly perSecond: number;
  /** Events at once after silence, at least 1. */
  readonly burst: number;
}

/** The state of a limit that nothing has met yet. */
export const UNUSED_RATE = Number.NEGATIVE_INFINITY;

/**
 * The state after one more event at `now` (milliseconds, from a clock that only goes forward), or undefined when that is
 * beyond the rate; the state is then unchanged.
 */
export function nextArrival({ perSecond, burst }: RateSettings, arrival: number, now: number): number | undefined {
  const intervalMs = 1_000 / perSecond;
  const from = Math.max(arrival, now);
  // A hair of tolerance: sums of fractions must not refuse the event that is exactly due.
  return from - now > (burst - 1) * intervalMs + 1e-3 ? undefined : from + intervalMs;
}

/** Milliseconds until the next event would be admitted; 0: at once. */
export function rateWaitMs({ perSecond, burst }: RateSettings, arrival: number, now: number): number {
  return Math.max(0, arrival - now - ((burst - 1) * 1_000) / perSecond);
}
