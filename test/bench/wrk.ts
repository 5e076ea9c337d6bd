import { runSuccessfully } from "../support/child-process.ts";

export interface WrkOptions {
  readonly port: number;
  readonly connections: number;
  readonly seconds: number;
}

export interface WrkResult {
  readonly requests: number;
  /** Connections that failed, ended early or timed out. */
  readonly failed: number;
  readonly perSecond: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

/** The same load before it counts: a runtime that compiles while it runs takes some thousands of connections for that. */
export const WARM_UP_SECONDS = 6;

const MS_PER_UNIT: Readonly<Record<string, number>> = { us: 0.001, ms: 1, s: 1000, m: 60_000 };

/** The load before a figure; a smoke run does not wait for it. */
export async function warmUp({ isSmoke }: { readonly isSmoke: boolean }, port: number): Promise<void> {
  await runWrk({ port, connections: 16, seconds: isSmoke ? 1 : WARM_UP_SECONDS });
}

/** A new connection for each request, as many at once as said. `undefined`: not one was answered in time. */
export async function runWrk({ port, connections, seconds }: WrkOptions): Promise<WrkResult | undefined> {
  const load = ["-t1", `-c${connections}`, `-d${seconds}s`, "--latency", "-H", "Connection: close"];
  const { stdout } = await runSuccessfully({ command: "wrk", args: [...load, `http://127.0.0.1:${port}/`] });
  const field = (pattern: RegExp): number => Number(pattern.exec(stdout)?.[1]);
  const latencyMs = (percent: number): number => {
    const [, value, unit] = new RegExp(`^\\s+${percent}%\\s+([\\d.]+)(us|ms|s|m)$`, "m").exec(stdout) ?? [];
    return Number(value) * (MS_PER_UNIT[unit ?? ""] ?? Number.NaN);
  };
  const result = {
    requests: field(/(\d+) requests in /),
    failed:
      (/Socket errors: (.*)/.exec(stdout)?.[1] ?? "").match(/\d+/g)?.reduce((sum, count) => sum + Number(count), 0) ??
      0,
    perSecond: field(/Requests\/sec:\s+([\d.]+)/),
    p50Ms: latencyMs(50),
    p99Ms: latencyMs(99),
  };
  if (Number.isNaN(result.requests) || Number.isNaN(result.p99Ms)) throw new Error(`wrk: no figures in ${stdout}`);
  if (result.requests === 0) return undefined;
  return result;
}
