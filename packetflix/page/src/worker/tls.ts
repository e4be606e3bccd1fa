// Records of TLS, and what a client says at first: above all the name of the server that it wants.

import { type Bytes, Short } from "./bytes";
import type { Out } from "./dissect";

const RECORDS: Record<number, string> = { 20: "change cipher spec", 21: "alert", 22: "handshake", 23: "application data" };
const MESSAGES: Record<number, string> = { 1: "client hello", 2: "server hello", 4: "new session ticket", 8: "encrypted extensions", 11: "certificate", 12: "server key exchange", 14: "server hello done", 16: "client key exchange", 20: "finished" };
const VERSIONS: Record<number, string> = { 0x301: "TLS 1.0", 0x302: "TLS 1.1", 0x303: "TLS 1.2", 0x304: "TLS 1.3" };

/** Most records of a segment that are told. */
const MOST = 16;

/** Whether these are records. */
export function tls(out: Out, from: number, end: number, mark: string): boolean {
  const { bytes } = out;
  if (end - from < 5 || !(bytes.u8(from) in RECORDS) || bytes.u8(from + 1) !== 3 || bytes.u8(from + 2) > 4) return false;
  const field = out.layer("TLS", "tls", from);
  const told: string[] = [];
  for (let at = from, count = 0; at + 5 <= end && count < MOST; count += 1) {
    const kind = RECORDS[bytes.u8(at)];
    if (kind === undefined || bytes.u8(at + 1) !== 3) break;
    const length = bytes.u16(at + 3);
    let text = kind;
    if (kind === "handshake" && at + 6 <= end) {
      const message = bytes.u8(at + 5);
      text = MESSAGES[message] ?? "encrypted handshake message";
      if (message === 1) text += hello(bytes, at + 9, field);
    }
    field(text.split(",")[0]!, `${length} bytes`, at, at + 5 + length);
    told.push(text);
    at += 5 + length;
  }
  out.say(mark + told.join(" · "));
  return true;
}

/** What a client hello tells (RFC 8446, section 4.1.2), as far as it is there. */
function hello(bytes: Bytes, at: number, field: ReturnType<Out["layer"]>): string {
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
        const name = bytes.ascii(place + 9, place + 9 + bytes.u16(place + 7));
        field("server name", name, place, place + 4 + length);
        told = `, server name ${name}`;
      }
      if (type === 16 && length > 3) {
        const name = bytes.ascii(place + 7, place + 7 + bytes.u8(place + 6));
        field("application protocol", name, place, place + 4 + length);
      }
      place += 4 + length;
    }
  } catch (error) {
    if (!(error instanceof Short)) throw error;
  }
  return told;
}
