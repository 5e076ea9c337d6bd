import { mkdir, readFile, writeFile } from "node:fs/promises";
import { get } from "node:http";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { runSuccessfully, TestProcess } from "../support/child-process.ts";
import { pollUntil } from "../support/deadline.ts";
import { findFreePort } from "../support/free-port.ts";
import { metric } from "../support/metric.ts";
import { describeWithPrograms } from "../support/required-program.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import { makeTempDir, type TempDir } from "../support/temp-dir.ts";

/** Proxies in front, by what they send. */
const SENDERS = ["haproxy-v1", "haproxy-v2", "nginx"] as const;
/** Receivers behind, and the way there. */
const ROUTES = [
  { name: "tunnelled-v1-nginx", receiver: "nginx", version: "v1", direct: false },
  { name: "tunnelled-v2-nginx", receiver: "nginx", version: "v2", direct: false },
  { name: "tunnelled-v2-haproxy", receiver: "haproxy", version: "v2", direct: false },
  { name: "direct-v1-haproxy", receiver: "haproxy", version: "v1", direct: true },
  { name: "direct-v2-haproxy", receiver: "haproxy", version: "v2", direct: true },
  { name: "direct-v2-nginx", receiver: "nginx", version: "v2", direct: true },
] as const;

const STREAM_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so";
/** Another address of loopback, so that it cannot be that of a proxy. */
const CLIENT = "127.0.0.9";

interface Front {
  readonly port: number;
  readonly edgePort: number;
  readonly name: string;
}

function nginxConfiguration(options: { directory: string; receiverPort: number; fronts: readonly Front[] }): string {
  const { directory, receiverPort, fronts } = options;
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    .map((kind) => `${kind}_temp_path ${directory}/${kind};`)
    .join("\n  ");
  const servers = fronts.map(
    ({ port, edgePort }) => `server { listen 127.0.0.1:${port}; proxy_pass 127.0.0.1:${edgePort}; proxy_protocol on; }`,
  );
  return `
load_module ${STREAM_MODULE};
daemon off;
worker_processes 1;
pid ${directory}/nginx.pid;
error_log stderr warn;
${process.getuid?.() === 0 ? "user root;" : ""}
events { worker_connections 256; }
stream {
  ${servers.join("\n  ")}
}
http {
  ${temporary}
  log_format peer "$proxy_protocol_addr $request_uri";
  access_log ${directory}/access.log peer;
  server {
    listen 127.0.0.1:${receiverPort} proxy_protocol;
    location / { return 200 "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_port"; }
  }
}
`;
}

function haproxyConfiguration(options: { receiverPort: number; fronts: readonly Front[] }): string {
  const listen = options.fronts.map(({ name, port, edgePort }) => {
    const server = name.startsWith("haproxy-v1")
      ? `server edge 127.0.0.1:${edgePort} send-proxy`
      : `server edge 127.0.0.1:${edgePort} send-proxy-v2 proxy-v2-options crc32c,unique-id check inter 200ms`;
    return `listen ${name}\n  bind 127.0.0.1:${port}\n  unique-id-format %ci-%cp\n  ${server}`;
  });
  return `
defaults
  mode tcp
  timeout connect 5s
  timeout client 20s
  timeout server 20s
${listen.join("\n")}
frontend receiver
  mode http
  bind 127.0.0.1:${options.receiverPort} accept-proxy
  http-request return status 200 content-type text/plain lf-string "%[src] %[src_port] %[dst_port] %[fc_pp_unique_id]"
`;
}

/** A request from `CLIENT`; resolves with the answer and the port that the client had. */
function request(port: number, path: string): Promise<{ body: string; clientPort: number }> {
  return new Promise((resolve, reject) => {
    const sent = get({ host: "127.0.0.1", port, path, localAddress: CLIENT, agent: false }, (response) => {
      let body = "";
      response.on("data", (text: Buffer) => (body += text.toString()));
      response.on("end", () => resolve({ body, clientPort: clientPort ?? 0 }));
    });
    let clientPort: number | undefined;
    sent.on("socket", (socket) => socket.on("connect", () => (clientPort = socket.localPort)));
    sent.on("error", reject);
    sent.setTimeout(10_000, () => sent.destroy(new Error("no answer in time")));
  });
}

describeWithPrograms("the PROXY protocol of HAProxy and nginx", ["haproxy", "nginx"], (programs) => {
  let directory: TempDir;
  let pair: SallyportPair;
  let nginx: TestProcess;
  let haproxy: TestProcess;
  const fronts: Front[] = [];

  beforeAll(async () => {
    directory = await makeTempDir();
    const receiverPorts = { nginx: await findFreePort(), haproxy: await findFreePort() };
    const service = (port: number) => ({ target: `127.0.0.1:${port}`, proxyProtocol: "allow" });
    pair = await SallyportPair.start({
      deployments: ROUTES.map(({ name, receiver, version, direct }) => ({
        name,
        target: direct ? `127.0.0.1:${receiverPorts[receiver]}` : receiver,
        direct,
        listenerConfig: { proxyProtocol: "required", trustedProxies: ["127.0.0.1"] },
        settings: { proxyProtocol: version },
      })),
      agentConfig: {
        services: { nginx: service(receiverPorts.nginx), haproxy: service(receiverPorts.haproxy) },
        allow: [],
      },
    });
    for (const sender of SENDERS) {
      for (const { name } of ROUTES) {
        fronts.push({ name: `${sender}-${name}`, port: await findFreePort(), edgePort: pair.listenerPort(name) });
      }
    }
    const ofSender = (program: string) => fronts.filter(({ name }) => name.startsWith(program));
    await mkdir(join(directory.path, "nginx"));
    const nginxPath = join(directory.path, "nginx.conf");
    await writeFile(
      nginxPath,
      nginxConfiguration({
        directory: join(directory.path, "nginx"),
        receiverPort: receiverPorts.nginx,
        fronts: ofSender("nginx"),
      }),
    );
    nginx = await TestProcess.start({
      command: programs.nginx,
      args: ["-p", directory.path, "-e", "stderr", "-c", nginxPath],
    });
    const haproxyPath = join(directory.path, "haproxy.cfg");
    await writeFile(
      haproxyPath,
      haproxyConfiguration({ receiverPort: receiverPorts.haproxy, fronts: ofSender("haproxy") }),
    );
    haproxy = await TestProcess.start({ command: programs.haproxy, args: ["-db", "-f", haproxyPath] });
    for (const { port } of fronts)
      await pollUntil(() => request(port, "/ready"), { what: `an answer by port ${port}` });
  });

  afterAll(async () => {
    await haproxy?.stop();
    await nginx?.stop();
    await pair?.stop();
    await directory?.remove();
  });

  const recordOf = (clientPort: number) =>
    pollUntil(() => pair.records().edge.find(({ partner }) => partner === `${CLIENT}:${clientPort}`), {
      what: "the edge's record",
    });

  it.each(SENDERS.flatMap((sender) => ROUTES.map((route) => [sender, route.name, route] as const)))(
    "%s in front and %s: the receiver hears of the first client",
    async (sender, _, route) => {
      const { port } = fronts.find(({ name }) => name === `${sender}-${route.name}`)!;
      const path = `/${sender}/${route.name}`;
      const { body, clientPort } = await request(port, path);
      const [address, sourcePort, destinationPort, uniqueId] = body.split(" ");
      expect([address, Number(sourcePort), Number(destinationPort)]).toEqual([
        CLIENT,
        clientPort,
        pair.listenerPort(route.name),
      ]);
      const record = await recordOf(clientPort);
      expect(record).toMatchObject({
        deployment: route.name,
        proxyProtocol: route.version,
        proxyLocal: `127.0.0.1:${port}`,
        code: "--",
      });
      expect(record.peer).toMatch(/^127\.0\.0\.1:/);
      const isHaproxyV2 = sender === "haproxy-v2";
      expect(record.proxyUniqueId).toBe(isHaproxyV2 ? `${CLIENT}-${clientPort}` : undefined);
      const hasUniqueId = route.receiver === "haproxy" && route.version === "v2";
      expect(uniqueId === undefined || uniqueId === "-" ? "" : uniqueId).toBe(hasUniqueId ? record.connection : "");
    },
  );

  it("nginx behind an agent behind an edge behind HAProxy logs the first client's address", async () => {
    const front = fronts.find(({ name }) => name === "haproxy-v2-tunnelled-v2-nginx")!;
    const { clientPort } = await request(front.port, "/chain");
    const log = join(directory.path, "nginx/access.log");
    const line = await pollUntil(
      async () => (await readFile(log, "utf8")).split("\n").find((text) => text.endsWith(" /chain")),
      { what: "the line of nginx" },
    );
    expect(line).toBe(`${CLIENT} /chain`);
    await recordOf(clientPort);
  });

  it("HAProxy's health checks are counted, open nothing and leave no record", async () => {
    const name = "tunnelled-v2-nginx";
    const count = async () => metric(await pair.edgeMetrics(), "edge_proxy_checks_total", `listener="${name}"`);
    const before = await count();
    const served = pair.records().edge.length;
    await pollUntil(async () => (await count()) >= before + 5 || undefined, { what: "five health checks" });
    expect(pair.records().edge.length).toBe(served);
    const endings = new Set(pair.records().edge.map(({ code }) => code));
    expect([...endings]).toEqual(["--"]);
  });
});

describeWithPrograms("server names of OpenSSL's client", ["openssl"], (programs) => {
  const NAMES = ["api", "rest"] as const;
  const servers: TestProcess[] = [];
  let directory: TempDir;
  let pair: SallyportPair;

  beforeAll(async () => {
    directory = await makeTempDir();
    const ports = new Map<string, number>();
    for (const name of NAMES) {
      const [key, cert] = [join(directory.path, `${name}.key`), join(directory.path, `${name}.crt`)];
      await runSuccessfully({
        command: programs.openssl,
        args: [
          ..."req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2".split(" "),
          "-subj",
          `/CN=${name}`,
        ].concat(["-keyout", key, "-out", cert]),
      });
      const port = await findFreePort();
      ports.set(name, port);
      servers.push(
        await TestProcess.start({
          command: programs.openssl,
          args: ["s_server", "-accept", `127.0.0.1:${port}`, "-key", key, "-cert", cert, "-alpn", "h2", "-www"],
        }),
      );
    }
    pair = await SallyportPair.start({
      deployments: [
        { name: "api", target: `127.0.0.1:${ports.get("api")}`, settings: { sni: ["*.api.example"] } },
        { name: "rest", listener: "api", target: `127.0.0.1:${ports.get("rest")}`, direct: true },
      ],
    });
  });

  afterAll(async () => {
    await pair?.stop();
    for (const server of servers) await server.stop();
    await directory?.remove();
  });

  it.each([
    [["-servername", "eu.api.example"], "api", { sni: "eu.api.example" }],
    [["-servername", "EU.API.example", "-tls1_2"], "api", { sni: "eu.api.example" }],
    [["-servername", "eu.api.example", "-alpn", "h2"], "api", { sni: "eu.api.example", alpn: ["h2"] }],
    [["-servername", "api.example"], "rest", { sni: "api.example" }],
    [["-noservername"], "rest", {}],
  ])("with %j it ends at the right server, which has answered itself", async (options, name, facts) => {
    const before = pair.records().edge.filter(({ deployment }) => deployment === name).length;
    const { stdout, stderr } = await pollUntil(
      () =>
        runSuccessfully({
          command: programs.openssl,
          args: ["s_client", "-connect", `127.0.0.1:${pair.listenerPort("api")}`, "-brief", ...options],
        }),
      { what: "a handshake" },
    );
    expect(`${stdout}${stderr}`).toMatch(new RegExp(`CN ?= ?${name}\\b`));
    expect((await pair.waitForEdgeRecords(name, before + 1)).at(-1)).toMatchObject(facts);
  });
});
