// DHCP (RFC 2131).

import type { Out } from "./dissect";

const KINDS = ["", "discover", "offer", "request", "decline", "ack", "nak", "release", "inform"];
const OPTIONS: Record<number, string> = { 1: "subnet mask", 3: "router", 6: "name servers", 12: "host name", 15: "domain", 50: "requested address", 51: "lease time", 53: "kind", 54: "server" };
const ADDRESSES = [1, 3, 6, 50, 54];

/** Most options that are shown: packets are made by anyone. */
const MOST = 64;

const COOKIE = 0x63825363;

export function dhcp(out: Out, at: number, end: number): void {
  const { bytes } = out;
  const field = out.layer("DHCP", "dhcp", at);
  const isReply = bytes.u8(at) === 2;
  field("operation", isReply ? "reply (2)" : "request (1)", at, at + 1);
  field("transaction", `0x${bytes.u32(at + 4).toString(16).padStart(8, "0")}`, at + 4, at + 8);
  field("client's address", bytes.ipv4(at + 12), at + 12, at + 16);
  field("your address", bytes.ipv4(at + 16), at + 16, at + 20);
  field("hardware address", bytes.mac(at + 28), at + 28, at + 34);
  out.say(isReply ? `reply: ${bytes.ipv4(at + 16)}` : "request");
  if (end < at + 240 || bytes.u32(at + 236) !== COOKIE) return;
  for (let place = at + 240, count = 0; place < end; ) {
    const code = bytes.u8(place);
    if (code === 255) return;
    if (code === 0) {
      place += 1;
      continue;
    }
    count += 1;
    if (count > MOST) {
      field("options", "more, which are not shown", place, end);
      return;
    }
    const length = bytes.u8(place + 1);
    const value = place + 2;
    let text = `${length} bytes`;
    if (code === 53) {
      const kind = KINDS[bytes.u8(value)] ?? "unknown";
      text = kind;
      out.say(kind === "offer" || kind === "ack" ? `${kind}: ${bytes.ipv4(at + 16)}` : kind);
    } else if (ADDRESSES.includes(code)) {
      const all = Array.from({ length: length >> 2 }, (_, each) => bytes.ipv4(value + 4 * each));
      text = all.join(", ");
    } else if (code === 51) text = `${bytes.u32(value)} s`;
    else if (code === 12 || code === 15) text = bytes.text(value, value + length);
    field(OPTIONS[code] ?? `option ${code}`, text, place, value + length);
    place = value + length;
  }
}
