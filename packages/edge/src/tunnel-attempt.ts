/** A try through an agent: OPEN, with the partner's first bytes behind it, until ACCEPT or RESET. */
import { type OpenRefusal, type OpenRequest, ResetCode, resetReason } from "@sallyport/protocol";
import { Ended, type Ending, endingOf, type StreamHandler, type TunnelStream } from "@sallyport/tunnel";
import type { AgentSession, AgentSessions, Via } from "./agent-sessions.ts";
import { type Attempt, type AttemptEvents, resetBlame } from "./attempt.ts";
import type { EarlyBytes } from "./early-bytes.ts";

/** An agent's own connect timeout answers with a better reason than ours can give; ours waits this much longer. */
const AGENT_GRACE_MS = 1_000;

const openEndings: Record<OpenRefusal | "noFeature", Ending> = {
  streamLimit: Ended.limit,
  noLink: Ended.noAgent,
  draining: Ended.noAgent,
  idsExhausted: Ended.noAgent,
  noFeature: Ended.noProxyHeader,
};

export interface TunnelAttemptOptions {
  readonly sessions: AgentSessions;
  readonly via: Via;
  readonly request: OpenRequest;
  readonly early: EarlyBytes;
  /** 0: the agent's own holds alone. */
  readonly connectTimeoutMs: number;
  readonly events: AttemptEvents & { onOpened(agent: string): void };
}

export class TunnelAttempt implements Attempt, StreamHandler {
  readonly #options: TunnelAttemptOptions;
  #stream: TunnelStream | undefined;
  #session: AgentSession | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: TunnelAttemptOptions) {
    this.#options = options;
  }

  start(): void {
    const { sessions, via, request, early, connectTimeoutMs, events } = this.#options;
    const opened = sessions.open(via, request, (_, session) => {
      this.#session = session;
      events.onOpened(session.agent);
      return this;
    });
    if (typeof opened === "string") {
      events.onFailed({ ending: openEndings[opened], blame: "way" });
      return;
    }
    this.#stream = opened;
    if (connectTimeoutMs > 0) this.#timer = setTimeout(() => this.#timeOut(opened), connectTimeoutMs + AGENT_GRACE_MS);
    early.flowTo(opened);
  }

  cancel(code: ResetCode): void {
    clearTimeout(this.#timer);
    this.#stream?.reset(code);
    this.#stream = undefined;
    this.#options.early.hold();
  }

  onAccept(address: string): void {
    clearTimeout(this.#timer);
    const stream = this.#stream;
    if (stream !== undefined) this.#options.events.onConnected({ type: "tunnel", stream, address });
  }

  onWritable(): void {
    this.#options.early.resume();
  }

  onReset(code: number, by: "peer" | "session"): void {
    clearTimeout(this.#timer);
    this.#stream = undefined;
    this.#options.early.hold();
    if (this.#session !== undefined && by === "peer" && code === ResetCode.shutdown) this.#session.leaving = true;
    // An agent that is gone may have given the target what the partner has sent; nobody is to get that twice.
    const mayBeDoubled = by === "session" && this.#options.early.bytes > 0;
    this.#options.events.onFailed({
      ending: endingOf({ type: "streamReset", code, by }, { side: "edge", connected: false }),
      blame: mayBeDoubled ? "connection" : resetBlame[resetReason(code)],
    });
  }

  // An agent that sends anything before ACCEPT breaks the protocol, which ends the session before it comes here.
  onData(): void {}
  onEnd(): void {}
  onFinished(): void {}

  #timeOut(stream: TunnelStream): void {
    const { sessions, via, early, events } = this.#options;
    this.#stream = undefined;
    stream.reset(ResetCode.targetTimeout);
    early.hold();
    // An agent that is out of reach meanwhile could not have answered, whatever its target does.
    const blame = sessions.pick(via) === undefined ? "way" : "target";
    events.onFailed({ ending: Ended.targetTimeout, blame });
  }
}
