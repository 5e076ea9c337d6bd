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
