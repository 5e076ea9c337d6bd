import { errorFacts, ExitCode, Failure, systemErrorText } from "./failure.ts";
import { formatHostPort, type HostPort } from "./host-port.ts";

const advice: Readonly<Record<string, string>> = {
  EACCES: "a port below 1024 needs the capability CAP_NET_BIND_SERVICE, or another port",
  EADDRINUSE: "another program listens there; stop it or choose another port",
  EADDRNOTAVAIL: "no interface of this machine has the address",
  EAFNOSUPPORT: "this machine has no such addresses (is IPv6 off?)",
};

/** Exit code 77 for a missing permission, 69 otherwise; `where` is the key of the configuration that holds the address. */
export function listenFailure(where: string, address: HostPort | undefined, error: unknown): Failure {
  if (error instanceof Failure) {
    return error;
  }
  const { code, type } = errorFacts(error);
  const on = address === undefined ? "" : ` on ${formatHostPort(address)}`;
  const hint = code === undefined ? undefined : advice[code];
  const exitCode = code === "EACCES" || code === "EPERM" ? ExitCode.permission : ExitCode.unavailable;
  return new Failure(
    exitCode,
    where,
    `cannot listen${on}: ${systemErrorText(code) ?? type}${hint === undefined ? "" : `; ${hint}`}`,
  );
}
