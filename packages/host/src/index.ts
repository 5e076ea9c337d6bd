export {
  type Cidr,
  cidrContains,
  formatCidr,
  formatIpAddress,
  type IpAddress,
  type IpFamily,
  isSpecialAddress,
  parseCidr,
  parseIpAddress,
  parsePeerAddress,
  readIpAddress,
  type SpecialAddress,
} from "./ip-address.ts";
export { connectionCapacity, fileDescriptorLimit, RESERVED_FILE_DESCRIPTORS } from "./file-descriptor-limit.ts";
export { notifyService, type ServiceState } from "./service-notify.ts";
export { writeFileAtomically } from "./atomic-file.ts";
export {
  describeFailure,
  type ErrorFacts,
  errorFacts,
  ExitCode,
  Failure,
  runProgram,
  systemErrorText,
  systemFailure,
} from "./failure.ts";
export { printableText } from "./printable-text.ts";
export { readSecretFile } from "./secret-file.ts";
export {
  DialError,
  type DialErrorReason,
  type Dialled,
  type DialOptions,
  dial,
  type SocketErrorReason,
  socketErrorReason,
} from "./dial.ts";
export { ResolveError, type ResolveErrorReason, Resolver, type ResolverOptions } from "./resolver.ts";
export { type ByteSizeBounds, byteSize, parseByteSize } from "./byte-size.ts";
export { checkConfigText, loadConfigFile, loadStateDir } from "./config-file.ts";
export { configReason, spoken } from "./config-reason.ts";
export {
  accessLogSection,
  count,
  drainTimeout,
  filePath,
  heartbeatSection,
  LOG_LEVELS,
  type LogLevel,
  logSection,
  memorySize,
  metricsSection,
  stripeSetting,
  timeoutOverrides,
  timeoutsSection,
} from "./config-sections.ts";
export { isDnsName } from "./dns-name.ts";
export { type DurationBounds, duration, parseDuration } from "./duration.ts";
export {
  formatHostPort,
  type HostPort,
  hostPort,
  listenAddress,
  parseHostPort,
  parseListenAddress,
  parsePort,
} from "./host-port.ts";
export { crc32c } from "./crc32c.ts";
export { ownProxyHeader } from "./own-proxy-header.ts";
export {
  encodeLocalProxyHeader,
  encodeProxyHeader,
  parseProxyEndpoint,
  parseProxyHeader,
  PROXY_HEADER_MAX_BYTES,
  type ProxyAdditions,
  type ProxyEndpoint,
  type ProxyHeader,
  type ProxyHeaderParse,
  type ProxyHeaderToWrite,
} from "./proxy-header.ts";
export { name } from "./name.ts";
export { nearestWord } from "./nearest-word.ts";
export { configSchemaText } from "./schema-file.ts";
export { registerAccessLogMetrics } from "./access-log-metrics.ts";
export { adminAddress } from "./admin-address.ts";
export { type AdminRequest, type AdminTarget, adminRequest } from "./admin-request.ts";
export {
  AdminError,
  type AdminErrorAnswer,
  type AdminRoute,
  AdminServer,
  type AdminServerOptions,
} from "./admin-server.ts";
export { program } from "./command-line.ts";
export { withFileLock } from "./file-lock.ts";
export { LineRate } from "./line-rate.ts";
export { NotRunning } from "./not-running.ts";
export { keepKeys } from "./kept-keys.ts";
export { leave } from "./leave.ts";
export { listenFailure } from "./listen-failure.ts";
export { createLogger, droppedLogLines, type Logger, type LoggerOptions } from "./log.ts";
export { LogDestination, type LogDestinationOptions } from "./log-destination.ts";
export { accessLogView, LogFile, type LogFileOptions, type LogFileSettings } from "./log-file.ts";
export { ObservabilityServer, type ObservabilityServerOptions } from "./observability-server.ts";
export { formatTable, printJson, printTable } from "./output.ts";
export { packageVersion } from "./package-version.ts";
export { collectProcessMetrics } from "./process-metrics.ts";
export { RecordLog } from "./record-log.ts";
export { openStateDirectory } from "./state-directory.ts";
