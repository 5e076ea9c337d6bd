export { ChunkPool, LARGE_CHUNK_BYTES, largeChunks, middleChunks } from "./chunk-pool.ts";
export * from "./codes.ts";
export * from "./frame.ts";
export { type Framing, FrameWriter, recordBytes } from "./frame-writer.ts";
export { MemoryBudget, MIN_DIRECTION_BYTES } from "./memory-budget.ts";
export * from "./messages.ts";
export * from "./session.ts";
