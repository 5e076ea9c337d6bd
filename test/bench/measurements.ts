/** Every group of columns, in the order of the report. */
import type { Measurement } from "./measurement.ts";
import { bulk } from "./measurements/bulk.ts";
import { connections } from "./measurements/connections.ts";
import { cut } from "./measurements/cut.ts";
import { echo } from "./measurements/echo.ts";
import { ipFilter } from "./measurements/ip-filter.ts";
import { path, pathWithLoss, pathWithLossAndBbr } from "./measurements/path.ts";
import { size } from "./measurements/size.ts";
import { standing } from "./measurements/standing.ts";

export const MEASUREMENTS: readonly Measurement[] = [
  bulk,
  connections,
  echo,
  standing,
  path,
  pathWithLoss,
  pathWithLossAndBbr,
  cut,
  size,
  ipFilter,
];
