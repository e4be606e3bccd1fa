// Records of TLS, and what a client says at first: above all the name of the server that it wants.

import { Bytes, Short } from "./bytes";
import type { Out } from "./dissect";

const RECORDS: Record<number, string> = { 20: "change cipher spec", 21: "alert", 22: "handshake", 23: "application data" };
const MESSAGES: Record<number, string> = { 1: "client hello", 2: "server hello", 4: "new session ticket", 8: "encrypted extensions", 11: "certificate", 12: "server key exchange", 14: "server hello done", 16: "client key exchange", 20: "finished" };
const VERSIONS: Record<number, string> = { 0x301: "TLS 1.0", 0x302: "TLS 1.1", 0x303: "TLS 1.2", 0x304: "TLS 1.3" };

/** Most records of a segment, and most messages of a handshake, that are told. */
const MOST = 16;

const ALERT = 21;
const HANDSHAKE = 22;

/** Alerts (RFC 8446, section 6, and the registry of IANA). */
const ALERTS: Record<number, string> = { 0: "close notify", 10: "unexpected message", 20: "bad record MAC", 21: "decryption failed", 22: "record overflow", 30: "decompression failure", 40: "handshake failure", 41: "no certificate", 42: "bad certificate", 43: "unsupported certificate", 44: "certificate revoked", 45: "certificate expired", 46: "certificate unknown", 47: "illegal parameter", 48: "unknown CA", 49: "access denied", 50: "decode error", 51: "decrypt error", 60: "export restriction", 70: "protocol version", 71: "insufficient security", 80: "internal error", 86: "inappropriate fallback", 90: "user canceled", 100: "no renegotiation", 109: "missing extension", 110: "unsupported extension", 111: "certificate unobtainable", 112: "unrecognized name", 113: "bad certificate status response", 114: "bad certificate hash value", 115: "unknown PSK identity", 116: "certificate required", 120: "no application protocol" };
const LEVELS: Record<number, string> = { 1: "warning", 2: "fatal" };

type Put = ReturnType<Out["layer"]>;

/** Whether these are records. */
export function tls(out: Out, from: number, end: number, mark: string): boolean {
  const { bytes } = out;
  if (end - from < 5 || !(bytes.u8(from) in RECORDS) || bytes.u8(from + 1) !== 3 || bytes.u8(from + 2) > 4) return false;
  const field = out.layer("TLS", "tls", from);
  const told: string[] = [];
  let run: Part[] = [];
  for (let at = from, count = 0; at + 5 <= end && count < MOST; count += 1) {
    const type = bytes.u8(at);
    const kind = RECORDS[type];
    if (kind === undefined || bytes.u8(at + 1) !== 3) break;
    const length = bytes.u16(at + 3);
    const next = at + 5 + length;
    field(kind, `${length} bytes`, at, next);
    if (type === HANDSHAKE) run.push({ from: at + 5, to: Math.min(next, end) });
    else if (type === ALERT) told.push(alert(bytes, at + 5, length, field));
    else told.push(kind);
    // A message may go on in the next record (RFC 8446, section 5.1).
    const isLast = next + 5 > end || bytes.u8(next) !== HANDSHAKE || count + 1 === MOST;
    if (run.length && isLast) {
      told.push(...handshake(bytes, run, field));
      run = [];
    }
    at = next;
  }
  out.say(mark + told.join(" · "));
  return true;
}

/** What an alert says, if that can be read. */
function alert(bytes: Bytes, at: number, length: number, field: Put): string {
  if (at + length > bytes.length) return "alert";
  const level = length === 2 ? LEVELS[bytes.u8(at)] : undefined;
  if (level === undefined) return "encrypted alert";
  const text = ALERTS[bytes.u8(at + 1)] ?? String(bytes.u8(at + 1));
  field("level", level, at, at + 1);
  field("description", `${text} (${bytes.u8(at + 1)})`, at + 1, at + 2);
  return `alert, ${level}: ${text}`;
}

/** A part of a packet. */
interface Part {
  from: number;
  to: number;
}

/** What is in several parts of a packet, as one. */
class Joined {
  readonly bytes: Bytes;

  constructor(
    bytes: Bytes,
    private readonly parts: Part[],
  ) {
    const all = new Uint8Array(parts.reduce((sum, { from, to }) => sum + to - from, 0));
    let at = 0;
    for (const { from, to } of parts) {
      all.set(bytes.slice(from, to), at);
      at += to - from;
    }
    this.bytes = new Bytes(all);
  }

  /** Where a byte of it is in the packet. */
  place(at: number): number {
    let rest = at;
    for (const { from, to } of this.parts) {
      if (rest < to - from) return from + rest;
      rest -= to - from;
    }
    return this.parts.at(-1)!.to;
  }
}

/** The messages of a handshake (RFC 8446, section 4). */
function handshake(bytes: Bytes, parts: Part[], field: Put): string[] {
  const joined = new Joined(bytes, parts);
  const put: Put = (name, value, from, to) => field(name, value, joined.place(from), joined.place(to - 1) + 1);
  const told: string[] = [];
  for (let at = 0; at < joined.bytes.length && told.length < MOST; ) {
    const message = joined.bytes.u8(at);
    const name = MESSAGES[message];
    if (name === undefined) return [...told, "encrypted handshake message"];
    told.push(name + (message === 1 ? hello(joined.bytes, at + 4, put) : ""));
    if (at + 4 > joined.bytes.length) break;
    at += 4 + joined.bytes.u24(at + 1);
  }
  return told;
}

/** What a client hello tells (RFC 8446, section 4.1.2), as far as it is there. */
function hello(bytes: Bytes, at: number, field: Put): string {
  let told = "";
  try {
    const version = bytes.u16(at);
    field("version", VERSIONS[version] ?? `0x${version.toString(16)}`, at, at + 2);
    let place = at + 34;
    place += 1 + bytes.u8(place);
    place += 2 + bytes.u16(place);
    place += 1 + bytes.u8(place);
    const end = place + 2 + bytes.u16(place);
    for (place += 2; place + 4 <= end; ) {
      const [type, length] = [bytes.u16(place), bytes.u16(place + 2)];
      // Server name (RFC 6066, section 3): a list with one name of the type 0.
      if (type === 0 && length > 5) {
        const name = bytes.text(place + 9, place + 9 + bytes.u16(place + 7));
        field("server name", name, place, place + 4 + length);
        told = `, server name ${name}`;
      }
      if (type === 16 && length > 3) {
        const name = bytes.text(place + 7, place + 7 + bytes.u8(place + 6));
        field("application protocol", name, place, place + 4 + length);
      }
      place += 4 + length;
    }
  } catch (error) {
    if (!(error instanceof Short)) throw error;
  }
  return told;
}
