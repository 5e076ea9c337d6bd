/** Every group of columns, in the order of the report. */
import type { Measurement } from "./measurement.ts";
import { bulk } from "./measurements/bulk.ts";

export const MEASUREMENTS: readonly Measurement[] = [bulk];
