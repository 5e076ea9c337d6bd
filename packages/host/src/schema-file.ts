import { z } from "zod";

/**
 * The JSON Schema (draft 7, which is what editors' YAML servers read) of a configuration file, as the text of a file.
 * `title` is what an editor calls it. The schema describes what people write, so durations are texts in it.
 */
export function configSchemaText(schema: z.ZodType, title: string): string {
  const json = z.toJSONSchema(schema, { io: "input", target: "draft-7" });
  const { $schema, ...rest } = json;
  return `${JSON.stringify({ $schema, title, ...rest }, null, 2)}\n`;
}
