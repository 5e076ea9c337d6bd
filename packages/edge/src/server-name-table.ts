/**
 * Which of several takers a TLS client means, by the name and the protocols that its ClientHello asks for. An exact name goes
 * before a wildcard, and a taker that names a protocol before one that takes any.
 */
import { isDnsName } from "@sallyport/host";
import type { ClientHello } from "./client-hello.ts";

export interface ServerNames {
  /** Names in lower case, or `*.` and a name: exactly one label more. Empty: whoever no other takes. */
  readonly sni: readonly string[];
  /** Only clients that offer one of these. Empty: all. */
  readonly alpn: readonly string[];
}

/** Says why a pattern is none; undefined: it is one. In lower case. */
export function serverNameFault(pattern: string): string | undefined {
  const name = pattern.startsWith("*.") ? pattern.slice(2) : pattern;
  if (name.includes("*")) return "a wildcard is the whole first label: *.corp.example";
  return isDnsName(name) ? undefined : "must be a host name, or *. and a host name; no IP address, no dot at its end";
}

interface Takers<T> {
  readonly byAlpn: Map<string, T>;
  any: T | undefined;
}

export class ServerNameTable<T> {
  readonly #patterns = new Map<string, Takers<T>>();
  #default: T | undefined;

  /** Adds a taker; returns the one that has a claim of it already, in which case nothing has changed. */
  add(taker: T, { sni, alpn }: ServerNames): { readonly taker: T; readonly pattern: string } | undefined {
    if (sni.length === 0) {
      if (this.#default !== undefined) return { taker: this.#default, pattern: "" };
      this.#default = taker;
      return undefined;
    }
    for (const pattern of sni) {
      const takers = this.#patterns.get(pattern);
      const other = alpn.length === 0 ? takers?.any : alpn.map((name) => takers?.byAlpn.get(name)).find(isDefined);
      if (other !== undefined) return { taker: other, pattern };
    }
    for (const pattern of sni) {
      const takers: Takers<T> = this.#patterns.get(pattern) ?? { byAlpn: new Map(), any: undefined };
      this.#patterns.set(pattern, takers);
      if (alpn.length === 0) takers.any = taker;
      for (const name of alpn) takers.byAlpn.set(name, taker);
    }
    return undefined;
  }

  /** Whether a ClientHello is needed to choose. */
  get asks(): boolean {
    return this.#patterns.size > 0;
  }

  /** Who takes what nobody else does. */
  get default(): T | undefined {
    return this.#default;
  }

  /** Undefined: nobody takes it. */
  find({ serverName, alpn }: ClientHello): T | undefined {
    if (serverName === undefined) return this.#default;
    const dot = serverName.indexOf(".");
    const wildcard = dot === -1 ? undefined : this.#patterns.get(`*${serverName.slice(dot)}`);
    return taking(this.#patterns.get(serverName), alpn) ?? taking(wildcard, alpn) ?? this.#default;
  }
}

function taking<T>(takers: Takers<T> | undefined, alpn: readonly string[]): T | undefined {
  return alpn.map((name) => takers?.byAlpn.get(name)).find(isDefined) ?? takers?.any;
}

function isDefined<T>(value: T | undefined): value is T {
  return value !== undefined;
}
