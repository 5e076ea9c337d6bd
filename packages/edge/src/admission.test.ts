import { parseIpAddress } from "@sallyport/host";
import { describe, expect, test } from "vitest";
import { Admission, type Admitted, sourceKey } from "./admission.ts";

const address = (text: string) => parseIpAddress(text)!;
const listener = (maxConnections?: number) => ({ active: 0, maxConnections });

function admitted(result: ReturnType<Admission["admit"]>): Admitted {
  if (typeof result === "string") throw new Error(result);
  return result;
}

describe("admission", () => {
  test("refuses beyond the limit of the edge, and admits again when a place is given back", () => {
    const admission = new Admission({ maxConnections: 2, maxConnectionsPerSource: 10 });
    const first = admitted(admission.admit(address("192.0.2.1"), listener()));
    admitted(admission.admit(address("192.0.2.2"), listener()));
    expect(admission.admit(address("192.0.2.3"), listener())).toBe("maxConnections");
    first.release();
    expect(admission.active).toBe(1);
    admitted(admission.admit(address("192.0.2.3"), listener()));
  });

  test("counts each listener apart", () => {
    const admission = new Admission({ maxConnections: 10, maxConnectionsPerSource: 10 });
    const small = listener(1);
    admitted(admission.admit(address("192.0.2.1"), small));
    expect(admission.admit(address("192.0.2.2"), small)).toBe("listenerMaxConnections");
    admitted(admission.admit(address("192.0.2.2"), listener()));
  });

  test.for([
    ["an IPv4 address", "192.0.2.1", "192.0.2.1", "192.0.2.2"],
    ["an IPv6 /64", "2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1"],
    ["a mapped IPv4 address", "::ffff:192.0.2.1", "192.0.2.1", "::ffff:192.0.2.2"],
  ])("counts %s as one source", ([, first, same, other]) => {
    const admission = new Admission({ maxConnections: 10, maxConnectionsPerSource: 1 });
    admitted(admission.admit(address(first!), listener()));
    expect(admission.admit(address(same!), listener())).toBe("maxConnectionsPerSource");
    admitted(admission.admit(address(other!), listener()));
  });

  test("a refusal takes nothing", () => {
    const admission = new Admission({ maxConnections: 10, maxConnectionsPerSource: 1 });
    const counter = listener();
    admitted(admission.admit(address("192.0.2.1"), counter));
    admission.admit(address("192.0.2.1"), counter);
    expect([admission.active, counter.active, admission.sources]).toEqual([1, 1, 1]);
  });

  test("releasing twice gives back one place, and the table of sources empties", () => {
    const admission = new Admission({ maxConnections: 10, maxConnectionsPerSource: 2 });
    const counter = listener();
    const one = admitted(admission.admit(address("192.0.2.1"), counter));
    const two = admitted(admission.admit(address("192.0.2.1"), counter));
    one.release();
    one.release();
    expect([admission.active, counter.active, admission.sources]).toEqual([1, 1, 1]);
    two.release();
    expect([admission.active, counter.active, admission.sources]).toEqual([0, 0, 0]);
  });

  test("an IPv4 and an IPv6 source never share a key", () => {
    expect(sourceKey(address("1.2.3.4"))).not.toBe(sourceKey(address("102:304::1")));
  });
});
