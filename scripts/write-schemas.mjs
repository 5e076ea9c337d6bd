// Writes the JSON Schemas of both configuration files from the built code: `npm run build && npm run schemas`.
import { mkdir, writeFile } from "node:fs/promises";
import { agentConfigSchema } from "../packages/agent/dist/config.js";
import { edgeConfigSchema } from "../packages/edge/dist/config.js";
import { configSchemaText } from "../packages/host/dist/index.js";

async function write(program, schema) {
  const directory = new URL(`../packages/${program}/schema/`, import.meta.url);
  await mkdir(directory, { recursive: true });
  const text = configSchemaText(schema, `sallyport-${program} configuration`);
  await writeFile(new URL(`${program}.schema.json`, directory), text);
}

await write("edge", edgeConfigSchema);
await write("agent", agentConfigSchema);
