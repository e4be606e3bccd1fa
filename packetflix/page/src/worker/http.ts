// The head of a message of HTTP/1.

import type { Out } from "./dissect";

const BEGINNING = /^(?:(?:GET|HEAD|POST|PUT|DELETE|PATCH|OPTIONS|CONNECT|TRACE) \S+ HTTP\/1\.[01]|HTTP\/1\.[01] \d{3}[^\r\n]*)/;

/** Most bytes of a head that are looked at. */
const MOST = 8192;

/** Whether it is one. */
export function http(out: Out, from: number, end: number, mark: string): boolean {
  const first = out.bytes.u8(from);
  // No letter, and so no method.
  if (first < 0x41 || first > 0x5a) return false;
  const text = out.bytes.bytewise(from, Math.min(end, from + MOST));
  const line = BEGINNING.exec(text)?.[0];
  if (line === undefined) return false;
  const field = out.layer("HTTP", "http", from);
  let at = from;
  for (const header of text.split("\r\n")) {
    if (header === "") break;
    const colon = at === from ? -1 : header.indexOf(":");
    const end = at + header.length;
    if (colon > 0) field(out.bytes.text(at, at + colon), out.bytes.text(at + colon + 1, end).trim(), at, end);
    else field(at === from ? "first line" : "line", out.bytes.text(at, end), at, end);
    at = end + 2;
  }
  out.say(mark + out.bytes.text(from, from + line.length));
  return true;
}
