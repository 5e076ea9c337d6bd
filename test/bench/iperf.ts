import { runProcess } from "../support/child-process.ts";

/** How long iperf3 sends, in whole seconds, or how much. */
export type Load = { readonly seconds: number } | { readonly bytes: number };

export interface IperfOptions {
  readonly port: number;
  readonly streams: number;
  readonly load: Load;
  /** `in`: from the partner to the target. `out`: the reverse. */
  readonly direction: "in" | "out" | "both";
}

export interface IperfResult {
  /** Bytes that the receiver has got. */
  readonly bytes: number;
  readonly bytesPerSecond: number;
}

interface Report {
  readonly error?: string;
  readonly end?: { readonly sum_received?: { readonly bytes: number; readonly bits_per_second: number } };
}

/** iperf3's client, as the partner. */
export async function runIperf({ port, streams, load, direction }: IperfOptions): Promise<IperfResult> {
  const mode = { in: [], out: ["-R"], both: ["--bidir"] }[direction];
  const amount = "seconds" in load ? ["-t", String(load.seconds)] : ["-n", String(load.bytes)];
  const args = ["-c", "127.0.0.1", "-p", String(port), "-P", String(streams), ...amount, "-J", ...mode];
  for (let attempt = 0; ; attempt++) {
    const { stdout } = await runProcess({
      command: "iperf3",
      args,
      timeoutMs: ("seconds" in load ? load.seconds * 1000 : 0) + 20_000,
    });
    const report = JSON.parse(stdout) as Report;
    const received = report.end?.sum_received;
    if (report.error === undefined && received !== undefined) {
      return { bytes: received.bytes, bytesPerSecond: received.bits_per_second / 8 };
    }
    // The server takes one client at a time, and the one before may have left only now.
    if (attempt === 2) throw new Error(`iperf3: ${report.error ?? "no result"}`);
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
}
