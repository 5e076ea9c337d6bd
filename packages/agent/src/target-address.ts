/**
 * What an edge may write where a target is named. Nothing here turns a name into an address: `0x7f.1`, `017700000001` and
 * `2130706433` are addresses to some resolvers, so a name that ends like a number is no name.
 */
import { formatIpAddress, type IpAddress, isDnsName, parseIpAddress } from "@sallyport/host";

/** `host:port` taken apart. A literal address is canonical, a name is in lower case. */
export type TargetAddress = { readonly host: string; readonly port: number } & (
  | { readonly type: "address"; readonly address: IpAddress }
  | { readonly type: "name" }
);

/** Undefined for everything that is not exactly `NAME:PORT`, `IPV4:PORT` or `[IPV6]:PORT`. */
export function parseTargetAddress(text: string): TargetAddress | undefined {
  const [, bracketed, plain, portText] =
    /^(?:\[([0-9a-fA-F:.]+)\]|([a-zA-Z0-9._-]+)):([1-9][0-9]{0,4})$/.exec(text) ?? [];
  const port = Number(portText);
  if (portText === undefined || port > 65_535) return undefined;
  const address = parseIpAddress(bracketed ?? plain ?? "");
  if (address !== undefined) {
    // IPv6 stands in brackets and IPv4 does not. A mapped IPv4 address is an IPv4 address from here on.
    return (bracketed !== undefined) === (bracketed?.includes(":") ?? false)
      ? { type: "address", host: formatIpAddress(address), port, address }
      : undefined;
  }
  if (plain === undefined || !isDnsName(plain)) return undefined;
  return { type: "name", host: plain.toLowerCase(), port };
}
