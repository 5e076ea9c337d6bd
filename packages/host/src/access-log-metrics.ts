/** Figures of the file that holds records of connections; all are 0 where there is none. */
import { Counter, Gauge, type Registry } from "prom-client";
import type { LogFile } from "./log-file.ts";

/** `file` is asked for at each reading. */
export function registerAccessLogMetrics(registry: Registry, file: () => LogFile | undefined): void {
  const registers = [registry];
  const counter = (name: string, help: string, read: (log: LogFile) => number) =>
    new Counter({
      name,
      help,
      registers,
      collect() {
        this.reset();
        const log = file();
        this.inc(log === undefined ? 0 : read(log));
      },
    });
  counter("sallyport_access_log_lines_total", "Lines for the access log.", (log) => log.counters.lines);
  counter(
    "sallyport_access_log_dropped_total",
    "Lines of the access log that were lost because the file did not take them.",
    (log) => log.droppedLines,
  );
  counter(
    "sallyport_access_log_rotations_total",
    "Times that another file took the place of a full or old one.",
    (log) => log.counters.rotations,
  );
  new Gauge({
    name: "sallyport_access_log_queued_bytes",
    help: "Bytes that wait for the file.",
    registers,
    collect() {
      this.set(file()?.queuedBytes ?? 0);
    },
  });
}
