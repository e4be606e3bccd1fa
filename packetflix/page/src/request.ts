// What is asked of a capture, and how that is written: as a path for us, as an address for Wireshark, and as commands.

import { now } from "./clock";
import { type Target, fullName } from "./model";
import { base, hasToken } from "./service";
import { isReadable } from "./text";

export interface Wish {
  /** Names of interfaces; all without any. */
  interfaces: string[];
  filter: string;
  packets: string;
  duration: string;
  bytes: string;
  snaplen: string;
  promiscuous: boolean;
}

export const ANYTHING: Wish = { interfaces: [], filter: "", packets: "", duration: "", bytes: "", snaplen: "", promiscuous: true };

function describe(target: Target): string {
  const { name, type, prefix, netns, pid, starttime } = target;
  return JSON.stringify({ name, type, prefix, netns, pid, starttime });
}

/** The path of a capture, below where the service is. */
export function pathOf(targets: Target[], wish: Wish): string {
  if (targets.some((target) => target.isUnlisted)) return withLimits(words(targets), wish);
  const described = targets.map(describe);
  return withLimits(new URLSearchParams({ container: described.length === 1 ? described[0]! : `[${described.join(",")}]` }), wish);
}

function words(targets: Target[]): URLSearchParams {
  return new URLSearchParams(targets.map((target) => ["target", wordOf(target)]));
}

/** Interfaces by name. What is called as all of them are, alone, is named twice. */
function namesOf({ interfaces }: Wish): string[] {
  const [first] = interfaces;
  return interfaces.length === 1 && (first === "any" || first === "all") ? [first, first] : interfaces;
}

function withLimits(query: URLSearchParams, wish: Wish): string {
  if (wish.interfaces.length) query.set("nif", namesOf(wish).join("/"));
  for (const limit of ["filter", "packets", "duration", "bytes", "snaplen"] as const) {
    if (wish[limit].trim()) query.set(limit, wish[limit].trim());
  }
  if (!wish.promiscuous) query.set("chaste", "");
  // As programs read it that know no form.
  return `capture?${query.toString().replaceAll("+", "%20")}`;
}

/** What Wireshark opens, where our client or the plugin is installed. */
export function wiresharkAddress(targets: Target[], wish: Wish): string {
  // A list of descriptions is read by the service alone, words by our client too.
  const url = new URL(targets.length === 1 ? pathOf(targets, wish) : withLimits(words(targets), wish), base);
  return `packetflix:${url.href.replace(/^http/, "ws")}`;
}

/** A word as a shell reads it. What cannot be seen is written by its bytes, so that nothing hides in a terminal. */
function quoted(word: string): string {
  if (/^[\w@%+=:,./-]+$/.test(word)) return word;
  if (isReadable(word)) return `'${word.replaceAll("'", "'\\''")}'`;
  const signs = Array.from(word, (sign) => {
    if (sign === "'" || sign === "\\") return `\\${sign}`;
    return isReadable(sign) ? sign : Array.from(new TextEncoder().encode(sign), (byte) => `\\${byte.toString(8).padStart(3, "0")}`).join("");
  });
  return `$'${signs.join("")}'`;
}

/** An option with its value, also where that looks like another option. */
function option(letter: string, value: string): string[] {
  return value.startsWith("-") ? [`-${letter}=${value}`] : [`-${letter}`, value];
}

/** What means something else than a target of this name. */
const OTHERWISE = /^[-!]|[*?]|^(?:compose|image|label|netns|node|pid|pod|type):|^(?:host)?$/;

/** A target as a word: by its namespace where its name is none to type, or means something else. */
function wordOf(target: Target): string {
  const name = fullName(target);
  return target.isUnlisted || (isReadable(name) && !OTHERWISE.test(name)) ? name : `netns:${target.netns}`;
}

export function command(targets: Target[], wish: Wish): string {
  const named = targets.map(wordOf);
  // What somebody has typed is taken for an option otherwise.
  const isLast = named.some((name) => name.startsWith("-"));
  const words = ["packetflix", "capture", "--server", base.href.replace(/\/$/, ""), ...(isLast ? [] : named)];
  for (const name of namesOf(wish)) words.push(...option("i", name));
  if (wish.filter.trim()) words.push(...option("f", wish.filter.trim()));
  if (wish.snaplen) words.push(...option("s", wish.snaplen));
  if (wish.packets) words.push(...option("c", wish.packets));
  if (wish.duration) words.push("-a", `duration:${wish.duration}`);
  if (wish.bytes) words.push("-a", `filesize:${wish.bytes}`);
  if (!wish.promiscuous) words.push("-p");
  words.push("-w", fileName(nameOf(targets)));
  if (isLast) words.push("--", ...named);
  return (hasToken() ? "PACKETFLIX_TOKEN=TOKEN " : "") + words.map(quoted).join(" ");
}

/** For curl from 7.86 on, which speaks WebSocket. */
export function curl(targets: Target[], wish: Wish): string {
  const url = new URL(pathOf(targets, wish), base).href.replace(/^http/, "ws");
  const words = ["curl", "--no-buffer", ...(hasToken() ? ["--header", "Authorization: Bearer TOKEN"] : [])];
  return [...words, "--output", fileName(nameOf(targets)), url].map(quoted).join(" ");
}

/** Most targets that one capture has, and most bytes of its path: beyond these the service does not read it. */
const MOST_TARGETS = 256;
const MOST_PATH = 60 * 1024;

/** The sentence on why so many cannot be captured at once. */
export function excessOf(targets: Target[], wish: Wish): string | undefined {
  if (targets.length > MOST_TARGETS) return `One capture has ${MOST_TARGETS} targets at most.`;
  if (pathOf(targets, wish).length > MOST_PATH) return "The names of so many targets, with all else that is asked for, are more than a request takes. Choose fewer.";
  return undefined;
}

/** Most names that are told of what is captured. */
const MOST_NAMES = 3;

/** What is captured, for people. */
export function nameOf(targets: Target[]): string {
  const names = targets.map(fullName);
  return names.length > MOST_NAMES + 1 ? `${names.slice(0, MOST_NAMES).join(", ")} and ${names.length - MOST_NAMES} more` : names.join(", ");
}

/** Names that sort by target and time, and that every file system and command line takes. */
export function fileName(captured: string, at = now()): string {
  const time = at.toISOString().replace(/[-:]|\.\d+/g, "");
  const name = captured.replace(/[^\w.-]+/g, "_").replace(/^[_.-]+|_+$/g, "").slice(0, 80);
  return `${name || "capture"}_${time}.pcapng`;
}
