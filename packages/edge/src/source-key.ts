/**
 * The unit by which sources are counted, limited and banned by detectors: an address cut to a prefix, because an IPv6
 * host usually has a /64 to itself.
 */
import type { Cidr, IpAddress } from "@sallyport/host";

/** Prefix lengths in bits of what counts as one source. */
export interface SourcePrefixes {
  /** 8 to 32. */
  readonly ipv4: number;
  /** 16 to 128. */
  readonly ipv6: number;
}

export const DEFAULT_SOURCE_PREFIXES: SourcePrefixes = { ipv4: 32, ipv6: 64 };

/** A short text that two addresses share exactly when they are one source: 2 UTF-16 units for IPv4, 8 for IPv6. */
export function sourceKey({ family, bytes }: IpAddress, prefixes: SourcePrefixes = DEFAULT_SOURCE_PREFIXES): string {
  const prefixLength = family === 4 ? prefixes.ipv4 : prefixes.ipv6;
  return prefixKey(bytes, prefixLength);
}

/** The key of the first `prefixLength` bits of 4 or 16 bytes; what stands behind them counts as zero. */
export function prefixKey(bytes: Uint8Array, prefixLength: number): string {
  let key = "";
  for (let at = 0; at < bytes.length; at += 2) {
    const bits = Math.min(Math.max(prefixLength - at * 8, 0), 16);
    const unit = ((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0);
    key += String.fromCharCode(unit & (0xffff0000 >> bits) & 0xffff);
  }
  return key;
}

/** The block of addresses that are one source with this address. */
export function sourceCidr(address: IpAddress, prefixes: SourcePrefixes = DEFAULT_SOURCE_PREFIXES): Cidr {
  const prefixLength = address.family === 4 ? prefixes.ipv4 : prefixes.ipv6;
  return { family: address.family, address: addressOfKey(sourceKey(address, prefixes)), prefixLength };
}

/** The first address of the source with this key. */
export function addressOfKey(key: string): IpAddress {
  const bytes = new Uint8Array(key.length * 2);
  for (let at = 0; at < key.length; at += 1) {
    const unit = key.charCodeAt(at);
    bytes[at * 2] = unit >> 8;
    bytes[at * 2 + 1] = unit & 0xff;
  }
  return { family: bytes.length === 4 ? 4 : 6, bytes };
}
