/**
 * The unit by which the tunnel port counts where connections come from: an IPv4 address, or the /64 of an IPv6 address,
 * because a single host is usually given that many. Takes what the kernel reports as a socket's remote address; an IPv4
 * address mapped into IPv6 counts as IPv4, a zone is ignored. Anything else counts as one source, `unknown`.
 */
export function sourcePrefix(remoteAddress: string | undefined): string {
  const address = unmapAddress(remoteAddress ?? "");
  if (!address.includes(":")) {
    return address === "" ? "unknown" : address;
  }
  const [head = "", tail] = address.split("%", 1)[0]?.split("::") ?? [];
  const groups = head === "" ? [] : head.split(":");
  if (tail !== undefined) {
    // What stands behind "::" ends at the 128th bit. A dotted IPv4 tail fills two groups.
    const behind = tail === "" ? [] : tail.split(":");
    const behindLength = behind.length + (tail.includes(".") ? 1 : 0);
    while (groups.length + behindLength < 8) {
      groups.push("0");
    }
    groups.push(...behind);
  }
  return `${groups
    .slice(0, 4)
    .map((group) => Number.parseInt(group, 16).toString(16))
    .join(":")}::/64`;
}

/** An address as people write it: `::ffff:192.0.2.1`, which a dual-stack listener reports, becomes `192.0.2.1`. */
export function unmapAddress(remoteAddress: string): string {
  return /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(remoteAddress)?.[1] ?? remoteAddress;
}
