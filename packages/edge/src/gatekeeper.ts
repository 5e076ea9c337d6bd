/**
 * Who guards the listeners: admission with its bans, the detectors that make bans, the tarpit, and one clock for all of
 * them. It makes bans out of trips and tells the log; what it decides about a connection is carried out by the connection.
 */
import { formatCidr, type IpAddress } from "@sallyport/host";
import type { Logger } from "pino";
import { Admission, type AdmissionDoor, type AdmissionLimits, type Admitted, type Denial } from "./admission.ts";
import type { Ban } from "./ban-list.ts";
import { type BanStore, steadyNow } from "./ban-store.ts";
import { type DetectorName, Detectors, type DetectorsSettings, type Trip } from "./detectors.ts";
import { Tarpit, type TarpitSettings } from "./tarpit.ts";

export interface GatekeeperSettings {
  readonly limits: AdmissionLimits;
  readonly detectors: DetectorsSettings;
  readonly tarpit: TarpitSettings;
}

export interface GatekeeperOptions {
  readonly bans: BanStore;
  readonly log: Logger;
  /** A detector has made a ban; connections that it concerns may be cut. */
  readonly onBan: (ban: Ban) => void;
  /** Default `steadyNow`. */
  readonly now?: () => number;
}

/** A reset within this time after the connection came is an early one. */
const EARLY_MS = 1_000;

/** How a connection went, as far as detectors care. */
export interface Conduct {
  readonly bytesIn: number;
  readonly ageMs: number;
  /** Who ended it, by the first letter of its code: only what the partner did is held against it. */
  readonly by: "partnerReset" | "finished" | "other";
}

export class Gatekeeper {
  readonly admission: Admission;
  readonly bans: BanStore;
  readonly detectors: Detectors;
  readonly tarpit: Tarpit;
  readonly #options: GatekeeperOptions;
  readonly #now: () => number;

  constructor(settings: GatekeeperSettings, options: GatekeeperOptions) {
    this.#options = options;
    this.#now = options.now ?? steadyNow;
    this.bans = options.bans;
    this.admission = new Admission(settings.limits, { bans: options.bans.list });
    this.detectors = new Detectors(settings.detectors);
    this.tarpit = new Tarpit(settings.tarpit);
  }

  get now(): number {
    return this.#now();
  }

  adopt(settings: GatekeeperSettings): void {
    this.admission.limits = settings.limits;
    this.detectors.settings = settings.detectors;
    this.tarpit.settings = settings.tarpit;
  }

  /** Takes a place for a connection from this peer, or says why not. */
  admit(address: IpAddress, door: AdmissionDoor): Admitted | Denial {
    const now = this.#now();
    // Behind a proxy it is the proxy that connects; the partner is counted when its address is known.
    if (!door.settings.behindProxy) this.#watchConnect(address, door, now);
    const answer = this.admission.admit(address, door, now);
    if (answer.type === "admitted") this.#watchActive(answer, now);
    return answer;
  }

  /** The same for the address of a PROXY header; a denial has given the place back. */
  admitClient(place: Admitted, address: IpAddress): Admitted | Denial {
    const now = this.#now();
    this.#watchConnect(address, place.door, now);
    const answer = this.admission.admitClient(place, address, now);
    if (answer.type === "admitted") this.#watchActive(answer, now);
    return answer;
  }

  /** Gives the place of a connection back and tells the detectors how it went. */
  leave(place: Admitted, conduct: Conduct): void {
    place.release();
    if (place.trusted) return;
    const now = this.#now();
    this.#watchActive(place, now);
    if (conduct.by === "other") return;
    if (conduct.bytesIn === 0) this.note("emptyConnections", place);
    if (conduct.by === "partnerReset" && conduct.ageMs < EARLY_MS) this.note("earlyResets", place);
  }

  /** Something happened that a detector counts. */
  note(detector: DetectorName, place: Admitted): void {
    if (place.trusted) return;
    this.#take(this.detectors.note(detector, place.address, this.#now()));
  }

  #watchConnect(address: IpAddress, door: AdmissionDoor, now: number): void {
    if (!this.detectors.watchesConnects || this.admission.isSettled(address, door, now)) return;
    this.#take(this.detectors.connected(address, door.settings.name, now));
  }

  #watchActive(place: Admitted, now: number): void {
    if (place.trusted || !this.detectors.watches("concurrency")) return;
    this.#take(this.detectors.active(place.address, this.admission.activeOf(place.address), now));
  }

  #take(trip: Trip | undefined): void {
    if (trip === undefined) return;
    const { detector, cidr, ttlMs, repeats, dryRun } = trip;
    const { log, onBan } = this.#options;
    if (dryRun) {
      log.warn({ detector, source: formatCidr(cidr), ttlMs }, "detector would ban a source");
      return;
    }
    const ban = this.bans.add({ cidr, origin: `auto:${detector}`, ttlMs, repeats });
    if (ban === undefined || ban.origin === "manual") return;
    log.warn({ detector, source: ban.text, ttlMs, repeats }, "source banned");
    onBan(ban);
  }
}
