export * from "./codes.ts";
export * from "./frame.ts";
export { type Framing, FrameWriter } from "./frame-writer.ts";
export * from "./messages.ts";
export * from "./session.ts";
