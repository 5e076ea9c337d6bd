/**
 * What the running edge answers on its admin socket. Every answer is JSON; the command line turns it into tables. No
 * answer holds a secret: the one thing that does, a new token, is made by `pair` and `rotate` and shown once.
 */
import { accessLogView, type AdminRoute, ExitCode, Failure, formatIpAddress, parseIpAddress } from "@sallyport/host";
import { admissionRoutes } from "./admission-routes.ts";
import { ResetCode } from "@sallyport/protocol";
import { z } from "zod";
import type { Deployment } from "./deployment.ts";
import type { Edge } from "./edge.ts";
import { pairClient, type PairResult, rotateClient } from "./pairing.ts";
import { ROUTE_STATES, type Route } from "./route.ts";

const nameBody = z.strictObject({ name: z.string() });
const stopBody = z.strictObject({ name: z.string(), drain: z.boolean().default(false) });
const clientBody = z.strictObject({ client: z.string(), tunnel: z.string().optional() });
const revokeBody = z.strictObject({ client: z.string(), token: z.string().optional() });
const killBody = z.strictObject({ connection: z.string() });
const testIpBody = z.strictObject({ filter: z.string(), address: z.string() });
const connectionsBody = z.strictObject({ deployment: z.string().optional() });

const targetsBody = z.strictObject({ deployment: z.string().optional() });
const setTargetBody = z.strictObject({
  deployment: z.string(),
  target: z.string(),
  client: z.string().optional(),
  state: z.enum(ROUTE_STATES).optional(),
  weight: z.int().min(0).max(1_000).optional(),
});

/** The most connections that one answer lists. */
const MAX_LISTED = 10_000;

export function deploymentView(deployment: Deployment): Record<string, unknown> {
  const { settings, address, bytes, counters } = deployment;
  return {
    deployment: deployment.name,
    state: deployment.state,
    ready: deployment.ready,
    startup: settings.startup,
    listener: settings.listener,
    listen: address === undefined ? undefined : `${bracket(address.address)}:${address.port}`,
    target: settings.pool.targets.map(({ target }) => target).join(", "),
    via: settings.via,
    connections: deployment.connections.size,
    accepted: counters.accepted,
    // Refused on the listener: of most it is never known which of its deployments they wanted.
    refused: Object.values(deployment.listener.refused).reduce((sum, count) => sum + count, 0),
    bytesIn: bytes.in,
    bytesOut: bytes.out,
  };
}

function routeView(deployment: Deployment, route: Route): Record<string, unknown> {
  const { pool } = deployment;
  const nowMs = performance.now();
  return {
    deployment: deployment.name,
    target: route.target,
    client: route.client,
    condition: pool.condition(route),
    reason: route.checkedUp ? undefined : route.reason,
    state: route.state,
    weight: route.weight,
    backup: route.settings.backup,
    active: route.active,
    maxConnections: route.settings.maxConnections,
    connectErrors: route.counters.connectErrors,
    checkFailures: route.counters.checkFailures,
    sinceSeconds: Math.round((nowMs - route.changedAt) / 1_000),
    ejectedForSeconds: route.isEjected(nowMs) ? Math.ceil((route.ejectedUntil - nowMs) / 1_000) : undefined,
  };
}

function targetsView(deployments: Iterable<Deployment>): { targets: Record<string, unknown>[] } {
  const targets = [];
  for (const deployment of deployments) {
    for (const route of deployment.pool.routes) targets.push(routeView(deployment, route));
  }
  return { targets };
}

function findDeployment(edge: Edge, name: string): Deployment {
  const deployment = edge.deployments.get(name);
  if (deployment === undefined) throw new Failure(ExitCode.usage, "deployment", `${name} does not exist`);
  return deployment;
}

export function adminRoutes(edge: Edge): AdminRoute[] {
  return [
    {
      method: "GET",
      path: "/status",
      handler: () => ({
        name: edge.config.name,
        startedAt: edge.startedAt.toISOString(),
        ready: edge.notReady.length === 0,
        notReady: edge.notReady,
        connections: edge.admission.active,
        ...accessLogView(edge.accessLog),
        maxConnections: edge.admission.limits.maxConnections,
        tunnels: [...edge.tunnelAddresses].map(([tunnel, { address, port }]) => ({
          tunnel,
          listen: `${bracket(address)}:${port}`,
        })),
        agents: [...edge.sessions.all].map((session) => ({
          client: session.client,
          agent: session.agent,
          session: session.id.slice(0, 8),
          connectedAt: session.connectedAt.toISOString(),
          links: session.links,
          streams: session.streams,
          remote: [...new Set([...session.tokenOfLink.keys()].map((link) => link.remoteAddress))],
          tokens: [...new Set(session.tokenOfLink.values())],
        })),
        deployments: [...edge.deployments.values()].map(deploymentView),
      }),
    },
    {
      method: "GET",
      path: "/deployments",
      handler: () => ({ deployments: [...edge.deployments.values()].map(deploymentView) }),
    },
    {
      method: "POST",
      path: "/connections",
      body: connectionsBody,
      handler: (body) => {
        const { deployment: only } = connectionsBody.parse(body);
        const listed = [];
        for (const connection of only === undefined ? edge.connections() : findDeployment(edge, only).connections) {
          if (listed.length >= MAX_LISTED) return { connections: listed, more: true };
          listed.push(connection.facts);
        }
        return { connections: listed, more: false };
      },
    },
    {
      method: "POST",
      path: "/connections/kill",
      body: killBody,
      handler: (body) => {
        const { connection: id } = killBody.parse(body);
        for (const connection of edge.connections()) {
          if (connection.id !== id) continue;
          connection.abort(ResetCode.killed);
          return { killed: id };
        }
        throw new Failure(ExitCode.usage, "connection", `${id} does not exist (any more)`);
      },
    },
    {
      method: "POST",
      path: "/deployments/start",
      body: nameBody,
      handler: async (body) => {
        const deployment = findDeployment(edge, nameBody.parse(body).name);
        await edge.startDeployment(deployment);
        return deploymentView(deployment);
      },
    },
    {
      method: "POST",
      path: "/deployments/stop",
      body: stopBody,
      handler: (body) => {
        const { name, drain } = stopBody.parse(body);
        const deployment = findDeployment(edge, name);
        // The answer does not wait for the last connection: a drain may take longer than the caller's patience.
        void deployment.stop(stopMode(edge, drain));
        return deploymentView(deployment);
      },
    },
    {
      method: "POST",
      path: "/deployments/restart",
      body: stopBody,
      handler: async (body) => {
        const { name, drain } = stopBody.parse(body);
        const deployment = findDeployment(edge, name);
        // The address is free as soon as `stop` is called; connections that drain do so beside the new listener.
        void deployment.stop(stopMode(edge, drain));
        await edge.startDeployment(deployment);
        return deploymentView(deployment);
      },
    },
    {
      method: "POST",
      path: "/targets",
      body: targetsBody,
      handler: (body) => {
        const { deployment } = targetsBody.parse(body);
        return targetsView(deployment === undefined ? edge.deployments.values() : [findDeployment(edge, deployment)]);
      },
    },
    {
      method: "POST",
      path: "/targets/set",
      body: setTargetBody,
      handler: (body) => {
        const { deployment: name, target, client, state, weight } = setTargetBody.parse(body);
        const deployment = findDeployment(edge, name);
        const { pool } = deployment;
        const routes = pool.find(target, client);
        if (routes.length === 0) {
          const through = client === undefined ? "" : ` through client ${client}`;
          throw new Failure(ExitCode.usage, "target", `${target}${through} is not a target of deployment ${name}`);
        }
        for (const route of routes) {
          if (state !== undefined) pool.setState(route, state);
          if (weight !== undefined) pool.setWeight(route, weight);
        }
        return targetsView([deployment]);
      },
    },
    {
      method: "POST",
      path: "/test-ip",
      body: testIpBody,
      handler: (body) => {
        const { filter, address } = testIpBody.parse(body);
        return testIp(edge, filter, address);
      },
    },
    {
      method: "POST",
      path: "/clients/pair",
      body: clientBody,
      handler: (body): Promise<PairResult> => {
        const { client, tunnel } = clientBody.parse(body);
        return pairClient({ config: edge.config, clients: edge.clients, client, tunnel });
      },
    },
    {
      method: "POST",
      path: "/clients/rotate",
      body: clientBody,
      handler: (body): Promise<PairResult> => {
        const { client, tunnel } = clientBody.parse(body);
        return rotateClient({ config: edge.config, clients: edge.clients, client, tunnel });
      },
    },
    {
      method: "POST",
      path: "/clients/revoke",
      body: revokeBody,
      handler: async (body) => {
        const { client, token } = revokeBody.parse(body);
        const revoked = await edge.clients.revoke(client, token);
        edge.sessions.revoke(client, token);
        edge.log.warn({ client, token }, "token revoked");
        return { client, revoked };
      },
    },
    {
      method: "GET",
      path: "/clients",
      handler: () => ({
        clients: edge.config.clients.map(({ name }) => ({
          client: name,
          tokens: edge.clients.list().find(({ client }) => client === name)?.tokens ?? [],
          connected: edge.sessions.isConnected(name),
        })),
      }),
    },
    ...admissionRoutes(edge),
    { method: "POST", path: "/reload", handler: () => edge.reload() },
  ];
}

/** The decision of a filter, and the rule that made it. */
export function testIp(edge: Edge, filterName: string, text: string): Record<string, unknown> {
  const address = parseIpAddress(text);
  if (address === undefined) throw new Failure(ExitCode.usage, "address", "not a canonical IP address");
  const filter = edge.ipFilter(filterName);
  if (filter === undefined) throw new Failure(ExitCode.usage, "filter", `${filterName} does not exist`);
  return { filter: filterName, address: formatIpAddress(address), ...filter.explain(address) };
}

function stopMode(edge: Edge, drain: boolean): Parameters<Deployment["stop"]>[0] {
  return drain ? { type: "drain", drainTimeoutMs: edge.config.drainTimeout } : { type: "cut" };
}

function bracket(address: string): string {
  return address.includes(":") ? `[${address}]` : address;
}
