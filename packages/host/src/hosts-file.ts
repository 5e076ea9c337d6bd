import { join } from "node:path";
import { formatIpAddress, parseIpAddress } from "./ip-address.ts";

/** Addresses by name in lower case. */
export type Hosts = ReadonlyMap<string, readonly string[]>;

/** Where this system keeps its hosts file. */
export function hostsFilePath(): string {
  return process.platform === "win32"
    ? join(process.env["SystemRoot"] ?? "C:\\Windows", "System32", "drivers", "etc", "hosts")
    : "/etc/hosts";
}

/** Parses hosts(5). Lines whose address is not canonical, or carries a zone, are passed over, as the C library does. */
export function parseHosts(text: string): Hosts {
  const hosts = new Map<string, string[]>();
  for (const line of text.split(/\r?\n/)) {
    const [addressText = "", ...names] = line.replace(/#.*/, "").trim().split(/\s+/);
    const address = parseIpAddress(addressText);
    if (address === undefined) {
      continue;
    }
    const canonical = formatIpAddress(address);
    for (const name of names) {
      const known = hosts.get(name.toLowerCase());
      if (known === undefined) {
        hosts.set(name.toLowerCase(), [canonical]);
      } else if (!known.includes(canonical)) {
        known.push(canonical);
      }
    }
  }
  return hosts;
}
