/**
 * A link without a network: what `SessionDriver` uses of a `Link`. One write is under way at a time, as on a real one; how
 * long it takes is what `pause` takes, and then all its frames arrive in one turn of the event loop.
 */
import { FrameWriter } from "@sallyport/protocol";
import type { Link, LinkEnd } from "@sallyport/tunnel";

let nextId = 1_000_000;

const WRITE_BYTES = 65_536;

/** Both ends of a new link. */
export function memoryLinks(pause: () => Promise<void>): { readonly edge: Link; readonly agent: Link } {
  const edge = new MemoryLink(pause);
  const agent = new MemoryLink(pause);
  edge.peer = agent;
  agent.peer = edge;
  // It has what the driver uses, and nothing of the sockets.
  return { edge: edge as unknown as Link, agent: agent as unknown as Link };
}

class MemoryLink {
  readonly id: number;
  onMessage: (message: Uint8Array) => void = () => undefined;
  onClosed: (end: LinkEnd) => void = () => undefined;
  onWritable: () => void = () => undefined;
  peer: MemoryLink | undefined;
  writing = false;
  dead = false;
  readonly #pause: () => Promise<void>;
  readonly #frames: { readonly at: number; readonly length: number }[] = [];
  readonly #writer: FrameWriter;

  constructor(pause: () => Promise<void>) {
    this.id = nextId;
    nextId += 1;
    this.#pause = pause;
    this.#writer = new FrameWriter(new Uint8Array(WRITE_BYTES), {
      headerBytes: () => 0,
      writeHeader: (_, at, length) => this.#frames.push({ at, length }),
    });
  }

  write(fill: (writer: FrameWriter) => void): void {
    if (this.dead || this.writing) return;
    fill(this.#writer);
    if (this.#frames.length > 0) void this.#carry();
  }

  close(code: number, reason: string): void {
    this.#end({ code, reason, breach: false });
    this.peer?.destroy();
  }

  destroy(): void {
    this.#end({ code: undefined, reason: "", breach: false });
  }

  async #carry(): Promise<void> {
    this.writing = true;
    await this.#pause();
    for (const { at, length } of this.#frames.splice(0)) {
      if (this.peer?.dead === false) this.peer.onMessage(this.#writer.bytes.subarray(at, at + length));
    }
    this.#writer.clear();
    this.writing = false;
    if (!this.dead) this.onWritable();
  }

  #end(end: LinkEnd): void {
    if (this.dead) return;
    this.dead = true;
    setImmediate(() => this.onClosed(end));
  }
}
