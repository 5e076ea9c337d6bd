/**
 * The first message each way on a link: HELLO from the agent, WELCOME from the edge. Only then does the link belong to
 * a session. Everything happens inside the message callback, because the peer's first frames may stand in the same
 * chunk as its greeting.
 */
import { CloseCode, decodeFrame, encodeFrame, type Hello, ProtocolError, type Welcome } from "@sallyport/protocol";
import type { Link, LinkEnd } from "./link.ts";

export interface GreetingOptions<T> {
  readonly timeoutMs: number;
  /** The greeting of the peer; called at most once. The callee takes the link's callbacks over. */
  readonly onGreeting: (greeting: T) => void;
  /** The link closed first. */
  readonly onFailed: (end: LinkEnd) => void;
}

function awaitGreeting<T extends "hello" | "welcome">(
  link: Link,
  type: T,
  options: GreetingOptions<T extends "hello" ? Hello : Welcome>,
): void {
  const timer = setTimeout(() => link.close(CloseCode.timeout, "no greeting"), options.timeoutMs);
  link.onClosed = (end) => {
    clearTimeout(timer);
    options.onFailed(end);
  };
  link.onMessage = (message) => {
    clearTimeout(timer);
    try {
      const frame = decodeFrame(message);
      if (frame.type !== type) throw new ProtocolError(`${type} expected`);
      const { type: _, ...greeting } = frame;
      options.onGreeting(greeting as T extends "hello" ? Hello : Welcome);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      link.close(error.code, error.message);
    }
  };
}

/** Edge: waits for HELLO. The callee answers with `welcome`, or closes the link with a code. */
export function awaitHello(link: Link, options: GreetingOptions<Hello>): void {
  awaitGreeting(link, "hello", options);
}

/** Edge: answers HELLO; the link is ready for its session. */
export function sendWelcome(link: Link, welcome: Welcome): void {
  const frame = encodeFrame({ type: "welcome", ...welcome });
  link.write((writer) => writer.put(frame));
}

/** Agent: says HELLO and waits for WELCOME. */
export function greet(link: Link, hello: Hello, options: GreetingOptions<Welcome>): void {
  awaitGreeting(link, "welcome", options);
  const frame = encodeFrame({ type: "hello", ...hello });
  link.write((writer) => writer.put(frame));
}
