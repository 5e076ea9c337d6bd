/**
 * Tells systemd how far the service is (sd_notify(3)). Node has no datagram sockets of the unix kind, so the message goes
 * through `systemd-notify`, which is there wherever systemd is; units set `NotifyAccess=all` for that.
 */
import { spawn } from "node:child_process";

export type ServiceState = "READY=1" | "STOPPING=1" | "RELOADING=1";

/** Does nothing where no service manager listens. A failure is not ours to handle: the manager's timeout tells. */
export function notifyService(state: ServiceState): void {
  if (process.env["NOTIFY_SOCKET"] === undefined) return;
  // Without --no-block: a sender that is gone before the manager reads its message may not be recognised (systemd-notify(1)).
  const child = spawn("systemd-notify", [state], { stdio: "ignore" });
  child.on("error", () => undefined);
  child.unref();
}
