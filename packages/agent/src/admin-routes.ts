/**
 * What the running agent answers on its admin socket. Every answer is JSON; the command line turns it into tables. No
 * answer holds a secret.
 */
import { accessLogView, type AdminRoute, ExitCode, Failure } from "@sallyport/host";
import { z } from "zod";
import type { Agent } from "./agent.ts";

const killBody = z.strictObject({ connection: z.string().max(64) });

/** The most connections that one answer lists. */
const MAX_LISTED = 10_000;

export function adminRoutes(agent: Agent): AdminRoute[] {
  return [
    {
      method: "GET",
      path: "/status",
      handler: () => {
        const { notReady, connections } = agent;
        return {
          name: agent.config.name,
          startedAt: agent.startedAt.toISOString(),
          ready: notReady.length === 0,
          notReady,
          connections: connections.live.size,
          ...accessLogView(agent.accessLog),
          forbidden: connections.forbidden,
          bytesIn: connections.bytes.in,
          bytesOut: connections.bytes.out,
          edges: agent.edges.map((edge) => ({
            address: edge.address,
            edge: edge.edge,
            connected: edge.connected,
            connectedSince: edge.connectedSince?.toISOString(),
            links: edge.links,
            streams: edge.streams,
            roundTripMs: edge.roundTripMs === undefined ? undefined : Math.round(edge.roundTripMs * 100) / 100,
            lastFailure: edge.lastFailure,
          })),
          services: [...agent.config.services].map(([service, { target }]) => ({
            service,
            target: `${target.host.includes(":") ? `[${target.host}]` : target.host}:${target.port}`,
            dialled: connections.dialled.get(service) ?? 0,
          })),
        };
      },
    },
    {
      method: "GET",
      path: "/connections",
      handler: () => {
        const listed = [];
        for (const connection of agent.connections.live) {
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
        const { connection } = killBody.parse(body);
        if (!agent.connections.kill(connection)) {
          throw new Failure(ExitCode.usage, "connection", `${connection} does not exist (any more)`);
        }
        return { killed: connection };
      },
    },
    { method: "POST", path: "/reload", handler: () => agent.reload() },
  ];
}
