/**
 * Figures of the process itself, under the names that dashboards for Prometheus and Node know. Nothing here throws when the
 * process has run out of file descriptors: what has to open a file (`process.memoryUsage` reads /proc, and throws EMFILE)
 * keeps its last value then. That is why the collector that comes with the metrics library is not used.
 */
import { readdirSync, readFileSync } from "node:fs";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { getHeapStatistics } from "node:v8";
import { Counter, Gauge, type Registry } from "prom-client";
import { droppedLogLines } from "./log.ts";

const NS_PER_S = 1e9;

/** Adds the figures to the registry. They are read when they are asked for; the process owns the rest. */
export function collectProcessMetrics(registry: Registry): void {
  const registers = [registry];
  const gauge = (name: string, help: string, read: () => number | undefined) =>
    new Gauge({
      name,
      help,
      registers,
      collect() {
        const value = sample(read);
        if (value !== undefined) {
          this.set(value);
        }
      },
    });
  const counter = (name: string, help: string, read: () => number) =>
    new Counter({
      name,
      help,
      registers,
      collect() {
        const value = sample(read);
        if (value !== undefined) {
          this.reset();
          this.inc(value);
        }
      },
    });

  counter("process_cpu_user_seconds_total", "CPU time in user mode.", () => process.resourceUsage().userCPUTime / 1e6);
  counter(
    "process_cpu_system_seconds_total",
    "CPU time in system mode.",
    () => process.resourceUsage().systemCPUTime / 1e6,
  );
  counter("process_cpu_seconds_total", "CPU time.", () => {
    const { userCPUTime, systemCPUTime } = process.resourceUsage();
    return (userCPUTime + systemCPUTime) / 1e6;
  });
  const startSeconds = Date.now() / 1e3 - process.uptime();
  gauge("process_start_time_seconds", "Start of the process, in seconds since 1970.", () => startSeconds);
  gauge("process_resident_memory_bytes", "Memory in RAM.", () => process.memoryUsage.rss());
  gauge(
    "process_max_resident_memory_bytes",
    "The most memory in RAM so far.",
    () => process.resourceUsage().maxRSS * 1024,
  );
  gauge("process_open_fds", "Open file descriptors.", () => readdirSync("/proc/self/fd").length);
  const maxFds = sample(() =>
    Number(/^Max open files\s+(\d+)/m.exec(readFileSync("/proc/self/limits", "latin1"))?.[1]),
  );
  gauge("process_max_fds", "The most file descriptors that may be open.", () => maxFds);
  gauge("nodejs_heap_size_used_bytes", "Used part of the JavaScript heap.", () => getHeapStatistics().used_heap_size);
  gauge("nodejs_heap_size_total_bytes", "Size of the JavaScript heap.", () => getHeapStatistics().total_heap_size);
  gauge(
    "nodejs_external_memory_bytes",
    "Memory that JavaScript objects hold outside the heap.",
    () => getHeapStatistics().external_memory,
  );

  const delay = monitorEventLoopDelay({ resolution: 20 });
  delay.enable();
  gauge(
    "nodejs_eventloop_lag_p50_seconds",
    "Median delay of the event loop since the last reading.",
    () => delay.percentile(50) / NS_PER_S,
  );
  gauge(
    "nodejs_eventloop_lag_p99_seconds",
    "99th percentile of the delay of the event loop since the last reading.",
    () => delay.percentile(99) / NS_PER_S,
  );
  gauge("nodejs_eventloop_lag_max_seconds", "Longest delay of the event loop since the last reading.", () => {
    const value = delay.max / NS_PER_S;
    // The last of the three that is read starts the next period.
    delay.reset();
    return value;
  });
  new Gauge({
    name: "nodejs_active_resources",
    help: "Sockets, timers and other things that keep the process alive, by kind.",
    labelNames: ["type"],
    registers,
    collect() {
      this.reset();
      for (const type of process.getActiveResourcesInfo()) this.inc({ type });
    },
  });
  new Gauge({ name: "nodejs_version_info", help: "Version of Node.js.", labelNames: ["version"], registers }).set(
    { version: process.version },
    1,
  );
  counter(
    "sallyport_log_dropped_total",
    "Lines of the log that were lost because standard output did not take them.",
    droppedLogLines,
  );
}

/** A figure, or undefined when it cannot be had now or on this system. */
function sample(read: () => number | undefined): number | undefined {
  try {
    const value = read();
    return value === undefined || !Number.isFinite(value) ? undefined : value;
  } catch {
    return undefined;
  }
}
