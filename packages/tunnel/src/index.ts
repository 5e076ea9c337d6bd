export * from "./activity-timer.ts";
export * from "./greeting.ts";
export * from "./link.ts";
export * from "./session-driver.ts";
export * from "./splice.ts";
export * from "./ending.ts";
