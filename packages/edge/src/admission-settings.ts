/** From the configuration file to what admission and its detectors need. */
import { type AdmissionLimits, type AdmissionPolicy, admissionRules, type RulePolicy } from "./admission.ts";
import type { EdgeConfig } from "./config.ts";
import type { DetectorName, DetectorSettings } from "./detectors.ts";
import type { GatekeeperSettings } from "./gatekeeper.ts";

type RuleMap = EdgeConfig["admission"]["rules"];

const SLOW_AFTER_MS = 30_000;
const SLOW_MIN_BYTES = 1_024;

/** What the listener says goes before what is said for all of them. */
export function admissionPolicy(general: RuleMap, ofListener: RuleMap): AdmissionPolicy {
  const policyOf = (rule: (typeof admissionRules)[number]): RulePolicy => ({
    enabled: ofListener[rule]?.enabled ?? general[rule]?.enabled ?? true,
    dryRun: ofListener[rule]?.dryRun ?? general[rule]?.dryRun ?? false,
    onDeny: ofListener[rule]?.onDeny ?? general[rule]?.onDeny ?? "reset",
  });
  return Object.fromEntries(admissionRules.map((rule) => [rule, policyOf(rule)])) as unknown as AdmissionPolicy;
}

/** `limits` may have a lower maximum than the file, where file descriptors do not suffice. */
export function gatekeeperSettings(config: EdgeConfig, limits: AdmissionLimits): GatekeeperSettings {
  const detectors: Partial<Record<DetectorName, DetectorSettings>> = {};
  for (const [name, detector] of Object.entries(config.detectors)) {
    const { threshold, window, ttl, maxTtl, dryRun } = detector;
    detectors[name as DetectorName] = { threshold, windowMs: window, ttlMs: ttl, maxTtlMs: maxTtl, dryRun };
  }
  const { slowBytes } = config.detectors;
  return {
    limits,
    detectors: {
      prefixes: config.limits.sourcePrefixes,
      detectors,
      slow:
        slowBytes === undefined
          ? undefined
          : { afterMs: slowBytes.after ?? SLOW_AFTER_MS, minBytes: slowBytes.minBytes ?? SLOW_MIN_BYTES },
    },
    tarpit: { holdMs: config.admission.tarpit.hold, max: config.admission.tarpit.max },
  };
}
