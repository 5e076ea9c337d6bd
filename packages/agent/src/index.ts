export { Agent } from "./agent.ts";
export { type AgentConfig, agentConfigSchema, type AllowRule, loadAgentConfig, type Service } from "./config.ts";
