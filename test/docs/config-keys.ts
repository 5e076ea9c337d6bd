import type { z } from "zod";
import { toJSONSchema } from "zod";

/** One key of a configuration file, as its schema describes it. */
export interface ConfigKey {
  /** `tunnels[].tls.certFile`; a name that the operator chooses is `NAME`. */
  readonly path: string;
  /** As it is written in the file; undefined when there is none. */
  readonly default: string | undefined;
  readonly required: boolean;
  readonly description: string;
}

interface JsonSchema {
  readonly description?: string;
  readonly default?: unknown;
  readonly properties?: Readonly<Record<string, JsonSchema>>;
  readonly required?: readonly string[];
  readonly items?: JsonSchema;
  readonly additionalProperties?: JsonSchema | boolean;
  readonly anyOf?: readonly JsonSchema[];
  readonly allOf?: readonly JsonSchema[];
}

/** Every key of a configuration schema, maps and lists before what is in them, in the order of the schema. */
export function configKeys(schema: z.ZodType): ConfigKey[] {
  const root = toJSONSchema(schema, { io: "input", target: "draft-7" }) as JsonSchema;
  return keysOf(root, "");
}

function keysOf(schema: JsonSchema, prefix: string): ConfigKey[] {
  return Object.entries(schema.properties ?? {}).flatMap(([name, property]) => {
    const path = `${prefix}${name}`;
    const key: ConfigKey = {
      path,
      default: isWorthSaying(property.default) ? spell(property.default) : undefined,
      required: (schema.required ?? []).includes(name) && property.default === undefined,
      description: property.description ?? property.items?.description ?? "",
    };
    return [key, ...inside(property, path)];
  });
}

function inside(schema: JsonSchema, path: string): ConfigKey[] {
  const { items, additionalProperties } = schema;
  if (items !== undefined) return keysOf(items, `${path}[].`);
  if (typeof additionalProperties === "object") {
    return [additionalProperties, ...(additionalProperties.anyOf ?? [])].flatMap((value) =>
      keysOf(value, `${path}.NAME.`),
    );
  }
  return keysOf(schema, `${path}.`);
}

/** The default of a map is that of its keys; an empty list or map is what "left out" means anyway. */
function isWorthSaying(value: unknown): boolean {
  return value !== undefined && (typeof value !== "object" || value === null);
}

function spell(value: unknown): string {
  return typeof value === "string" ? value : JSON.stringify(value);
}
