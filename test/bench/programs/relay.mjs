// What Node does at its best with `pipe` alone: `node relay.mjs MODE TLS LISTEN=DIAL…`, both as HOST:PORT.
//
//   plain                      TCP to TCP
//   to-tls CA_FILE,NAME        TCP to TLS, a TLS connection for each TCP connection
//   from-tls CERT_FILE,KEY_FILE   TLS to TCP
//
// An end becomes an end, and an error on one side ends the other at once.
import { readFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { connect as connectTls, createServer as createTlsServer } from "node:tls";

const [mode, tls, ...pairs] = process.argv.slice(2);
const [first, second] = tls.split(",");
const CIPHER = "TLS_AES_128_GCM_SHA256";

function address(text) {
  const at = text.lastIndexOf(":");
  return { host: text.slice(0, at), port: Number(text.slice(at + 1)) };
}

function join(near, far) {
  for (const [from, to] of [
    [near, far],
    [far, near],
  ]) {
    // A TLS socket cannot be reset.
    from.on("error", () => (to.encrypted ? to.destroy() : to.resetAndDestroy()));
    from.once("close", () => {
      if (!to.writableFinished) to.destroy();
    });
    from.pipe(to);
  }
}

const ca = mode === "to-tls" ? readFileSync(first) : undefined;
for (const pair of pairs) {
  const [listen, dial] = pair.split("=").map(address);
  const options = { allowHalfOpen: true, noDelay: true };
  const dialTcp = () => connect({ ...dial, ...options });
  const server =
    mode === "from-tls"
      ? createTlsServer(
          { ...options, cert: readFileSync(first), key: readFileSync(second), ciphers: CIPHER, minVersion: "TLSv1.3" },
          (near) => join(near, dialTcp()),
        )
      : createServer(options, (near) =>
          join(
            near,
            mode === "plain"
              ? dialTcp()
              : connectTls({ ...dial, ...options, ca, servername: second, ciphers: CIPHER, minVersion: "TLSv1.3" }),
          ),
        );
  server.on("tlsClientError", () => undefined);
  server.listen({ ...listen, backlog: 4096 });
}
