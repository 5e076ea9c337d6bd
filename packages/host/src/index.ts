export {};
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
