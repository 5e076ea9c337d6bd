import { expect, test } from "vitest";
import { ExitCode, Failure } from "./failure.ts";
import { listenFailure } from "./listen-failure.ts";

test.each([
  [
    "EADDRINUSE",
    69,
    "cannot listen on [::1]:22: address already in use (EADDRINUSE); another program listens there; stop it or choose another port",
  ],
  [
    "EACCES",
    77,
    "cannot listen on [::1]:22: permission denied (EACCES); a port below 1024 needs the capability CAP_NET_BIND_SERVICE, or another port",
  ],
  [
    "EADDRNOTAVAIL",
    69,
    "cannot listen on [::1]:22: address not available (EADDRNOTAVAIL); no interface of this machine has the address",
  ],
  ["EMFILE", 69, "cannot listen on [::1]:22: too many open files (EMFILE)"],
])("%s is exit code %d with advice", (code, exitCode, what) => {
  const error = Object.assign(new Error("hunter2"), { code });
  expect(listenFailure("listeners.sftp.listen", { host: "::1", port: 22 }, error)).toMatchObject({
    exitCode,
    where: "listeners.sftp.listen",
    what,
  });
});

test("a failure that says more is kept", () => {
  const failure = new Failure(ExitCode.configuration, "a", "b");
  expect(listenFailure("x", undefined, failure)).toBe(failure);
});
