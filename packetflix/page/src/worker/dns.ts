// DNS (RFC 1035), and what is like it: mDNS and LLMNR.

import { type Bytes, Short } from "./bytes";
import type { Out } from "./dissect";

const TYPES: Record<number, string> = { 1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 41: "OPT", 64: "SVCB", 65: "HTTPS", 255: "ANY" };
const CODES = ["no error", "format error", "server failure", "no such name", "not implemented", "refused"];

const PORTS: Record<number, [string, string]> = { 5353: ["mDNS", "mdns"], 5355: ["LLMNR", "llmnr"] };

/** Most records that are shown, and most jumps in a name: packets are made by anyone. */
const MOST_RECORDS = 50;
const MOST_LABELS = 128;

/** A name at a place, and where what follows it begins. */
function nameAt(bytes: Bytes, start: number, at: number): { name: string; next: number } {
  const labels: string[] = [];
  let next = -1;
  for (let count = 0; count < MOST_LABELS; count += 1) {
    const length = bytes.u8(at);
    if (length >= 0xc0) {
      if (next < 0) next = at + 2;
      at = start + (bytes.u16(at) & 0x3fff);
    } else if (length === 0) {
      return { name: labels.join(".") || ".", next: next < 0 ? at + 1 : next };
    } else {
      labels.push(bytes.text(at + 1, at + 1 + length));
      bytes.slice(at + 1, at + 1 + length);
      at += 1 + length;
    }
  }
  throw new Short();
}

function record(bytes: Bytes, start: number, type: number, at: number, length: number): string {
  if (type === 1 && length === 4) return bytes.ipv4(at);
  if (type === 28 && length === 16) return bytes.ipv6(at);
  if ([2, 5, 12].includes(type)) return nameAt(bytes, start, at).name;
  if (type === 15) return `${bytes.u16(at)} ${nameAt(bytes, start, at + 2).name}`;
  if (type === 33) return `${nameAt(bytes, start, at + 6).name}:${bytes.u16(at + 4)}`;
  if (type === 16) return JSON.stringify(bytes.text(at + 1, at + Math.min(length, 1 + bytes.u8(at))));
  return `${length} bytes`;
}

export function dns(out: Out, at: number, _end: number): void {
  const { bytes, packet } = out;
  const [name, protocol] = PORTS[packet.ports.find((port) => port in PORTS) ?? 0] ?? ["DNS", "dns"];
  const field = out.layer(name, protocol, at);
  const flags = bytes.u16(at + 2);
  const isAnswer = (flags & 0x8000) !== 0;
  const code = CODES[flags & 15] ?? `code ${flags & 15}`;
  field("identifier", `0x${bytes.u16(at).toString(16).padStart(4, "0")}`, at, at + 2);
  field("flags", `${isAnswer ? "response" : "query"}${isAnswer ? `, ${code}` : ""}`, at + 2, at + 4);
  const counts = [bytes.u16(at + 4), bytes.u16(at + 6), bytes.u16(at + 8), bytes.u16(at + 10)] as const;
  field("questions", counts[0], at + 4, at + 6);
  field("answers", counts[1], at + 6, at + 8);
  const asked: string[] = [];
  const told: string[] = [];
  const say = () => {
    const what = isAnswer ? (flags & 15 ? `: ${code}` : told.length ? `: ${told.join(", ")}` : ": nothing") : "";
    out.say(`${isAnswer ? "response" : "query"} ${asked.join(", ")}${what}`);
  };
  let place = at + 12;
  try {
    for (let count = 0; count < Math.min(counts[0], MOST_RECORDS); count += 1) {
      const { name: question, next } = nameAt(bytes, at, place);
      const type = bytes.u16(next);
      asked.push(`${TYPES[type] ?? `type ${type}`} ${question}`);
      field("question", asked.at(-1)!, place, next + 4);
      place = next + 4;
    }
    const records = Math.min(counts[1] + counts[2] + counts[3], MOST_RECORDS);
    for (let count = 0; count < records; count += 1) {
      const { name: owner, next } = nameAt(bytes, at, place);
      const type = bytes.u16(next);
      const length = bytes.u16(next + 8);
      const value = record(bytes, at, type, next + 10, length);
      const kind = count < counts[1] ? "answer" : count < counts[1] + counts[2] ? "authority" : "additional";
      field(kind, `${TYPES[type] ?? `type ${type}`} ${owner} ${value}`, place, next + 10 + length);
      if (count < counts[1]) told.push(`${TYPES[type] ?? `type ${type}`} ${value}`);
      place = next + 10 + length;
    }
  } finally {
    // As far as it came.
    say();
  }
}
