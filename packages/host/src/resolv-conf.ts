/** What resolv.conf(5) says about names that are not complete. Its servers are read by the DNS client itself. */
export interface ResolvConf {
  /** Domains to try behind a short name, at most 32. */
  readonly search: readonly string[];
  /** A name with this many dots and more is tried as it stands first; 0-15. */
  readonly ndots: number;
}

const MAX_SEARCH_DOMAINS = 32;
const MAX_NDOTS = 15;

/** Parses resolv.conf(5). Of several `search` and `domain` lines the last one counts, as in the C library. */
export function parseResolvConf(text: string): ResolvConf {
  let search: string[] = [];
  let ndots = 1;
  for (const line of text.split(/\r?\n/)) {
    const [keyword, ...values] = line
      .replace(/[#;].*/, "")
      .trim()
      .split(/\s+/);
    if (keyword === "search" || keyword === "domain") {
      const domains = values.map((domain) => domain.replace(/\.$/, "")).filter((domain) => domain !== "");
      search = domains.slice(0, keyword === "domain" ? 1 : MAX_SEARCH_DOMAINS);
    } else if (keyword === "options") {
      for (const value of values) {
        const digits = /^ndots:([0-9]{1,3})$/.exec(value)?.[1];
        ndots = digits === undefined ? ndots : Math.min(Number(digits), MAX_NDOTS);
      }
    }
  }
  return { search, ndots };
}

/** The complete names to ask for, in order. A trailing dot says that the name is complete. */
export function completeNames(name: string, { search, ndots }: ResolvConf): string[] {
  if (name.endsWith(".")) {
    return [name.slice(0, -1)];
  }
  const dots = name.split(".").length - 1;
  const searched = search.map((domain) => `${name}.${domain}`);
  return dots >= ndots ? [name, ...searched] : [...searched, name];
}
