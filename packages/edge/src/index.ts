export { edgeConfigSchema, loadEdgeConfig, type EdgeConfig } from "./config.ts";
export { Edge } from "./edge.ts";
