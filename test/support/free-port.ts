import { randomInt } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:net";

/** Ports that this process has handed out. Bounded by the size of the range below. */
const handedOut = new Set<number>();

/**
 * A TCP port of `host` that nobody listens on at this moment, for programs that cannot report a port 0 themselves.
 *
 * It lies below the range from which Linux, Windows and macOS take the local ports of outgoing connections (32768 and
 * up), so that none of the thousands of connections that a load test opens can take it before the program binds it.
 */
export async function findFreePort(host = "127.0.0.1"): Promise<number> {
  for (let attempt = 0; attempt < 1000; attempt++) {
    const port = randomInt(10_240, 32_768);
    if (handedOut.has(port)) continue;
    if (await canBind(host, port)) {
      handedOut.add(port);
      return port;
    }
  }
  throw new Error(`no free port found on ${host}`);
}

async function canBind(host: string, port: number): Promise<boolean> {
  const server = createServer();
  try {
    server.listen(port, host);
    await once(server, "listening");
  } catch {
    return false;
  }
  server.close();
  await once(server, "close");
  return true;
}
