// Which of the packets are shown. Words are held against all that a row tells; `field:value` against one thing of it; `!` turns
// a word round. All of them have to hold.

import type { Packet } from "./dissect";
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

const number = (text: string) => (/^\d+$/.test(text) ? Number(text) : undefined);

function numbers(value: string): ((found: number) => boolean) | undefined {
  const parts = /^(<|>|)(\d+)(?:-(\d+))?$/.exec(value);
  if (!parts) return undefined;
  const [sign, from] = [parts[1], Number(parts[2])];
  const to = number(parts[3] ?? "") ?? from;
  if (sign === "<") return (found) => found < from;
  if (sign === ">") return (found) => found > from;
  return (found) => found >= from && found <= to;
}

/** Fields, and what a value of theirs asks of a packet. */
const FIELDS: Record<string, (value: string) => Test | undefined> = {
  proto: (value) => (seen) => seen.packet.protocols.includes(value),
  addr: (value) => (seen) => [...seen.packet.addresses, ...seen.named].some((address) => address.toLowerCase().startsWith(value)),
  port: (value) => {
    const holds = numbers(value);
    return holds && ((seen) => seen.packet.ports.some(holds));
  },
  len: (value) => {
    const holds = numbers(value);
    return holds && ((seen) => holds(seen.length));
  },
  iface: (value) => (seen) => seen.link.toLowerCase() === value,
  target: (value) => (seen) => seen.target.toLowerCase().includes(value),
  dir: (value) => (["in", "out"].includes(value) ? (seen) => seen.direction === value : undefined),
  flags: (value) => {
    const bit = FLAGS.indexOf(value.toUpperCase());
    return bit < 0 ? undefined : (seen) => ((seen.packet.tcp?.flags ?? 0) & (1 << bit)) !== 0;
  },
  mark: (value) => (seen) => seen.mark.includes(value),
};

/** A filter, or the sentence on what it is not; nothing where all is shown. */
export function parse(expression: string): Test | string | undefined {
  const tests: Test[] = [];
  for (const word of expression.toLowerCase().split(/\s+/).filter(Boolean)) {
    const isTurned = word.startsWith("!");
    const rest = isTurned ? word.slice(1) : word;
    const [, field, value] = /^([a-z]+):(.+)$/.exec(rest) ?? [];
    let test: Test | undefined;
    if (field !== undefined && value !== undefined && field in FIELDS) {
      test = FIELDS[field]!(value);
      if (!test) return `${rest} cannot be used`;
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
