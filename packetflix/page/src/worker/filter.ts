// Which of the packets are shown. Words are held against all that a row tells; `field:value` against one thing of it; `!` turns
// a word round. All of them have to hold.

import type { Packet } from "./dissect";
import { MARKS } from "./conversations";
import { FLAGS } from "./dissect";

export interface Seen {
  packet: Packet;
  target: string;
  link: string;
  direction: string;
  length: number;
  /** Names of addresses. */
  named: string[];
  mark: string;
}

type Test = (seen: Seen) => boolean;

/** What is asked of numbers, if any number up to `most` can be so. */
function numbers(value: string, most: number): ((found: number) => boolean) | undefined {
  const parts = /^(?:(<|>)(\d+)|(\d+)(?:-(\d+))?)$/.exec(value);
  if (!parts) return undefined;
  const sign = parts[1];
  const from = Number(parts[2] ?? parts[3]);
  const to = Number(parts[4] ?? from);
  const isPossible = sign === "<" ? from > 0 : sign === ">" ? from < most : from <= to && from <= most;
  if (!isPossible) return undefined;
  if (sign === "<") return (found) => found < from;
  if (sign === ">") return (found) => found > from;
  return (found) => found >= from && found <= to;
}

/** Protocols that packets are told to have, as `layer` is called with them. */
const PROTOCOLS = ["eth", "vlan", "arp", "ip", "ipv6", "icmp", "icmpv6", "tcp", "udp", "dns", "dhcp", "http", "tls", "data"];

const MOST_PORT = 0xffff;

interface Field {
  /** What it takes, for people. */
  takes: string;
  test: (value: string) => Test | undefined;
}

/** Fields, and what a value of theirs asks of a packet. */
const FIELDS = new Map<string, Field>([
  ["proto", { takes: `one of ${PROTOCOLS.join(", ")}`, test: (value) => (PROTOCOLS.includes(value) ? (seen) => seen.packet.protocols.includes(value) : undefined) }],
  ["addr", { takes: "an address or a name", test: (value) => (seen) => [...seen.packet.addresses, ...seen.named].some((address) => address.toLowerCase().startsWith(value)) }],
  [
    "port",
    {
      takes: `a number up to ${MOST_PORT}, 8000-8080, >1023 or <1024`,
      test: (value) => {
        const holds = numbers(value, MOST_PORT);
        return holds && ((seen) => seen.packet.ports.some(holds));
      },
    },
  ],
  [
    "len",
    {
      takes: "a number, 60-100, >1000 or <100",
      test: (value) => {
        const holds = numbers(value, Number.MAX_SAFE_INTEGER);
        return holds && ((seen) => holds(seen.length));
      },
    },
  ],
  ["iface", { takes: "the name of an interface", test: (value) => (seen) => seen.link.toLowerCase() === value }],
  ["target", { takes: "a part of the name of a target", test: (value) => (seen) => seen.target.toLowerCase().includes(value) }],
  ["dir", { takes: "in or out", test: (value) => (["in", "out"].includes(value) ? (seen) => seen.direction === value : undefined) }],
  [
    "flags",
    {
      takes: `one of ${FLAGS.join(", ").toLowerCase()}`,
      test: (value) => {
        const bit = FLAGS.indexOf(value.toUpperCase());
        return bit < 0 ? undefined : (seen) => ((seen.packet.tcp?.flags ?? 0) & (1 << bit)) !== 0;
      },
    },
  ],
  [
    "mark",
    {
      takes: `one of ${MARKS.filter(Boolean).join(", ").toLowerCase()}, or the first word of one`,
      test: (value) => (MARKS.some((mark) => mark.toLowerCase().includes(value)) ? (seen) => seen.mark.toLowerCase().includes(value) : undefined),
    },
  ],
]);

/** A filter, or the sentence on what it is not; nothing where all is shown. */
export function parse(expression: string): Test | string | undefined {
  const tests: Test[] = [];
  for (const word of expression.toLowerCase().split(/\s+/).filter(Boolean)) {
    const isTurned = word.startsWith("!");
    const rest = isTurned ? word.slice(1) : word;
    if (!rest) return "! turns the word that follows it: !dns";
    const [, name, value] = /^([a-z]+):(.*)$/.exec(rest) ?? [];
    let test: Test | undefined;
    if (name !== undefined && value !== undefined && !isAddress(rest)) {
      const field = FIELDS.get(name);
      if (!field) return `there is no ${name}: but ${[...FIELDS.keys()].join(", ")}`;
      test = value ? field.test(value) : undefined;
      if (!test) return `${rest} is none: ${name} takes ${field.takes}`;
    } else {
      test = ({ packet, target, link, named }) => {
        const all = [packet.summary, packet.source, packet.destination, target, link, ...named, ...packet.protocols];
        return all.some((text) => text.toLowerCase().includes(rest));
      };
    }
    const holds = test;
    tests.push(isTurned ? (seen) => !holds(seen) : holds);
  }
  return tests.length ? (seen) => tests.every((test) => test(seen)) : undefined;
}

/** Whether a word may be the beginning of an address, as `fe80:` is. */
function isAddress(word: string): boolean {
  return /^[0-9a-f]{1,4}:[0-9a-f:.]*$/.test(word);
}
