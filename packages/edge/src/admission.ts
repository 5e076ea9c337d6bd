/**
 * What is asked of a connection before anything is made for it: is there room, in all, on its listener and for its
 * source. Counts only; what a count belongs to is released by whoever was admitted.
 */
import type { IpAddress } from "@sallyport/host";

export interface AdmissionLimits {
  /** Partner connections of the whole edge. */
  readonly maxConnections: number;
  /** Partner connections of one source: an IPv4 address, or an IPv6 /64. */
  readonly maxConnectionsPerSource: number;
}

export type AdmissionRefusal = "maxConnections" | "listenerMaxConnections" | "maxConnectionsPerSource";

/** Counts the connections of one listener; kept by the listener, changed by `Admission` only. */
export interface AdmissionCounter {
  active: number;
  /** Undefined: only the limits of the edge hold. */
  readonly maxConnections: number | undefined;
}

/** A place that was given; `release` gives it back, once. */
export interface Admitted {
  release(): void;
}

/** The part of an address that counts as one source: an IPv6 host usually has a /64 to itself. */
export function sourceKey(address: IpAddress): string {
  const bytes = address.family === 4 ? address.bytes : address.bytes.subarray(0, 8);
  let key = "";
  for (const byte of bytes) key += String.fromCharCode(byte);
  return key;
}

export class Admission {
  limits: AdmissionLimits;
  #active = 0;
  /** Connections by source; an entry goes with its last connection, so at most `maxConnections` entries. */
  readonly #sources = new Map<string, number>();

  constructor(limits: AdmissionLimits) {
    this.limits = limits;
  }

  get active(): number {
    return this.#active;
  }

  get sources(): number {
    return this.#sources.size;
  }

  /** Takes a place, or says which limit is reached; then nothing has changed. */
  admit(address: IpAddress, listener: AdmissionCounter): Admitted | AdmissionRefusal {
    if (this.#active >= this.limits.maxConnections) return "maxConnections";
    if (listener.maxConnections !== undefined && listener.active >= listener.maxConnections) {
      return "listenerMaxConnections";
    }
    const key = sourceKey(address);
    const ofSource = this.#sources.get(key) ?? 0;
    if (ofSource >= this.limits.maxConnectionsPerSource) return "maxConnectionsPerSource";
    this.#active += 1;
    listener.active += 1;
    this.#sources.set(key, ofSource + 1);
    let released = false;
    return {
      release: () => {
        if (released) return;
        released = true;
        this.#active -= 1;
        listener.active -= 1;
        const left = (this.#sources.get(key) ?? 1) - 1;
        if (left === 0) this.#sources.delete(key);
        else this.#sources.set(key, left);
      },
    };
  }
}
