import { isIPv4, isIPv6 } from "node:net";
import { z } from "zod";
import { spoken } from "./config-reason.ts";
import { isDnsName } from "./dns-name.ts";

/** Where to dial or to listen. An IPv6 address stands without brackets. */
export interface HostPort {
  readonly host: string;
  readonly port: number;
}

/** `host:port`, for a host without colon, or in brackets. */
const PATTERN = /^(?:\[([^[\]]*)\]|([^:[\]]*)):([^:]*)$/;

/** A decimal port without sign and leading zero. The pattern bounds the digits, the caller the value. */
const PORT_PATTERN = /^(?:0|[1-9][0-9]{0,4})$/;

/** What editors check; the code is stricter. */
const JSON_PATTERN = "^(\\[[0-9a-fA-F:.]+\\]|[a-zA-Z0-9._-]+):[0-9]{1,5}$";

/**
 * Reads `host:port`, `192.0.2.1:22` or `[2001:db8::1]:22`. The host is a DNS name or an address in canonical form; the port
 * is decimal, 1-65535.
 *
 * @throws Error whose message is a reason fit for the person who wrote the text; the text is not repeated in it
 */
export function parseHostPort(text: string): HostPort {
  const parts = splitHostPort(text);
  const { host, bracketed } = parts;
  if (bracketed ? !isAddress(host, 6) : !isAddress(host, 4) && !isDnsName(host)) {
    throw new Error(
      bracketed ? "not a canonical IPv6 address in the brackets" : "the host is not a DNS name or canonical IP address",
    );
  }
  const port = parsePort(parts.port);
  if (port === undefined || port === 0) {
    throw new Error("port must be 1-65535");
  }
  return { host, port };
}

/**
 * Reads an address to listen on: as {@link parseHostPort}, but the host is an IP address, or `localhost`, which is
 * 127.0.0.1 here. Port 0 lets the system choose a free one.
 *
 * @throws Error with a reason, as above
 */
export function parseListenAddress(text: string): HostPort {
  const parts = splitHostPort(text);
  const host = parts.host === "localhost" && !parts.bracketed ? "127.0.0.1" : parts.host;
  if (!isAddress(host, parts.bracketed ? 6 : 4)) {
    throw new Error("must listen on an IP address such as 0.0.0.0:2222, 127.0.0.1:2222 or [::]:2222");
  }
  const port = parsePort(parts.port);
  if (port === undefined) {
    throw new Error("port must be 0-65535");
  }
  return { host, port };
}

/** `host:port`, with brackets around an IPv6 address. */
export function formatHostPort({ host, port }: HostPort): string {
  return `${host.includes(":") ? `[${host}]` : host}:${port}`;
}

/** A configuration value that {@link parseHostPort} reads. */
export function hostPort() {
  return readBy(parseHostPort);
}

/** A configuration value that {@link parseListenAddress} reads. */
export function listenAddress() {
  return readBy(parseListenAddress);
}

/** The number of a port, 0-65535; undefined for anything but its decimal digits. */
export function parsePort(text: string): number | undefined {
  return PORT_PATTERN.test(text) && Number(text) <= 65_535 ? Number(text) : undefined;
}

function readBy(parse: (text: string) => HostPort) {
  return z
    .string(spoken("must be host:port, such as host.example:22, 192.0.2.1:22 or [2001:db8::1]:22"))
    .meta({ pattern: JSON_PATTERN })
    .transform((text, context): HostPort => {
      try {
        return parse(text);
      } catch (error) {
        context.addIssue({ code: "custom", message: error instanceof Error ? error.message : "not host:port" });
        return z.NEVER;
      }
    });
}

function splitHostPort(text: string): { host: string; port: string; bracketed: boolean } {
  const [, inBrackets, plain, port] = PATTERN.exec(text) ?? [];
  if (port === undefined) {
    throw new Error(
      isIPv6(text)
        ? "an IPv6 address stands in brackets and is followed by the port, such as [2001:db8::1]:22"
        : "must be host:port, such as host.example:22, 192.0.2.1:22 or [2001:db8::1]:22",
    );
  }
  return { host: inBrackets ?? plain ?? "", port, bracketed: inBrackets !== undefined };
}

/** Node's grammar of addresses is canonical (no octal, no short forms) but lets a zone pass, which only one machine knows. */
function isAddress(text: string, family: 4 | 6): boolean {
  return family === 4 ? isIPv4(text) : isIPv6(text) && !text.includes("%");
}
