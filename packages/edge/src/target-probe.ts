/**
 * Asks whether a target can be reached, by the way that connections take: dialled by the edge itself, or by an agent, for
 * which a stream is opened that says that it is a check (docs/protocol.md §5). Then bytes are sent and awaited, where the
 * configuration wants that, and the connection is reset.
 */
import { DialError, dial, ownProxyHeader, type Resolver } from "@sallyport/host";
import { CHECK_PARTNER, ResetCode, resetReason } from "@sallyport/protocol";
import { endingOf, type StreamHandler, type TunnelStream } from "@sallyport/tunnel";
import type { AgentSessions, Via } from "./agent-sessions.ts";
import { type Blame, dialFailures, resetBlame } from "./attempt.ts";
import { nextConnectionId } from "./connection-id.ts";
import type { CheckSettings, ProbeResult } from "./health-checks.ts";
import { localProxyOfOpen, type OutboundProxyProtocol } from "./outbound-proxy-header.ts";

/** How much of a target's answer is searched for what is expected. */
const MAX_ANSWER_BYTES = 4_096;

const PASSED: ProbeResult = { type: "passed" };
const UNKNOWN: ProbeResult = { type: "unknown" };
const failed = (reason: string): ProbeResult => ({ type: "failed", reason });

export interface DirectProbe {
  readonly host: string;
  readonly port: number;
  readonly resolver: Resolver;
  /** Version of the PROXY header that the target expects first. */
  readonly proxyProtocol: "off" | OutboundProxyProtocol;
}

/** The edge dials. */
export async function probeDirectly(
  { host, port, resolver, proxyProtocol }: DirectProbe,
  settings: CheckSettings,
  signal: AbortSignal,
): Promise<ProbeResult> {
  const deadline = performance.now() + settings.timeoutMs;
  try {
    const { socket } = await dial({ host, port, resolver, signal, timeoutMs: settings.timeoutMs });
    const answer = new ExpectedAnswer(settings.expect);
    return await new Promise<ProbeResult>((resolve) => {
      const done = (result: ProbeResult) => {
        clearTimeout(timer);
        signal.removeEventListener("abort", onAbort);
        socket.resetAndDestroy();
        resolve(result);
      };
      const onAbort = () => done(UNKNOWN);
      const timer = setTimeout(() => done(failed("no answer in time")), Math.max(1, deadline - performance.now()));
      signal.addEventListener("abort", onAbort);
      socket.on("data", (bytes: Buffer) => {
        const result = answer.add(bytes);
        if (result !== undefined) done(result);
      });
      socket.on("end", () => done(failed("closed before the expected answer")));
      socket.on("error", () => done(failed("reset before the expected answer")));
      if (proxyProtocol !== "off") socket.write(ownProxyHeader(socket, proxyProtocol === "v1" ? 1 : 2));
      // The kernel takes so few bytes at once; what the target makes of them, only an expected answer tells.
      if (settings.send !== undefined) socket.write(settings.send);
      if (answer.isMet) done(PASSED);
      else socket.resume();
    });
  } catch (error) {
    if (!(error instanceof DialError)) throw error;
    const { ending, blame } = dialFailures[error.reason];
    return resultOf(ending.reason, blame);
  }
}

export interface TunnelProbe {
  readonly sessions: AgentSessions;
  readonly via: Via;
  readonly target: string;
  readonly deployment: string;
  /** Version of the PROXY header that the target expects first. */
  readonly proxyProtocol: "off" | OutboundProxyProtocol;
}

/** An agent dials. */
export function probeThroughAgent(
  { sessions, via, target, deployment, proxyProtocol }: TunnelProbe,
  settings: CheckSettings,
  signal: AbortSignal,
): Promise<ProbeResult> {
  return new Promise<ProbeResult>((resolve) => {
    let stream: TunnelStream | undefined;
    let isConnected = false;
    const answer = new ExpectedAnswer(settings.expect);
    const done = (result: ProbeResult) => {
      clearTimeout(timer);
      signal.removeEventListener("abort", onAbort);
      stream?.reset(ResetCode.cancelled);
      stream = undefined;
      resolve(result);
    };
    const onAbort = () => done(UNKNOWN);
    const timer = setTimeout(() => {
      done(failed(isConnected ? "no answer in time" : "connect timeout"));
    }, settings.timeoutMs);
    signal.addEventListener("abort", onAbort);
    const handler: StreamHandler = {
      onAccept: () => {
        isConnected = true;
        if (settings.send !== undefined) stream?.write(settings.send);
        if (answer.isMet) done(PASSED);
      },
      onData: (bytes) => {
        stream?.consume(bytes.length);
        const result = answer.add(bytes);
        if (result !== undefined) done(result);
      },
      onEnd: () => done(failed("closed before the expected answer")),
      onWritable: () => undefined,
      onReset: (code, by) => {
        stream = undefined;
        const { reason } = endingOf({ type: "streamReset", code, by }, { side: "edge", connected: isConnected });
        done(resultOf(isConnected ? "reset before the expected answer" : reason, resetBlame[resetReason(code)]));
      },
      onFinished: () => undefined,
    };
    const request = {
      connection: nextConnectionId(),
      target,
      deployment,
      partner: CHECK_PARTNER,
      ...(proxyProtocol === "off" ? {} : { proxy: localProxyOfOpen(proxyProtocol) }),
    };
    const opened = sessions.open(via, request, () => handler);
    if (typeof opened === "string") done(UNKNOWN);
    else stream = opened;
  });
}

/** A lack of the agent says nothing of the target: nobody marks it down for that. */
function resultOf(reason: string, blame: Blame): ProbeResult {
  return blame === "target" ? failed(reason) : UNKNOWN;
}

class ExpectedAnswer {
  readonly #expected: Buffer | undefined;
  #received = Buffer.alloc(0);

  constructor(expected: Buffer | undefined) {
    this.#expected = expected;
  }

  /** Nothing (more) is awaited. */
  get isMet(): boolean {
    return this.#expected === undefined || this.#received.includes(this.#expected);
  }

  /** The result, as soon as there is one. */
  add(bytes: Uint8Array): ProbeResult | undefined {
    this.#received = Buffer.concat([this.#received, bytes]).subarray(0, MAX_ANSWER_BYTES);
    if (this.isMet) return PASSED;
    return this.#received.length >= MAX_ANSWER_BYTES ? failed("another answer than expected") : undefined;
  }
}
