// Bytes of a packet, of which some may be missing: what is not there is told, and never read.

/** There are fewer bytes than what is read should have. */
export class Short extends Error {}

const MOST_ARGUMENTS = 4096;

// A mark of the order of bytes is a sign like others here, and is shown.
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

export class Bytes {
  private readonly view: DataView;

  constructor(readonly all: Uint8Array) {
    this.view = new DataView(all.buffer, all.byteOffset, all.byteLength);
  }

  get length(): number {
    return this.all.length;
  }

  private need(end: number): void {
    if (end > this.all.length) throw new Short();
  }

  u8(at: number): number {
    this.need(at + 1);
    return this.view.getUint8(at);
  }

  u16(at: number): number {
    this.need(at + 2);
    return this.view.getUint16(at);
  }

  u24(at: number): number {
    return (this.u8(at) << 16) | this.u16(at + 1);
  }

  u32(at: number): number {
    this.need(at + 4);
    return this.view.getUint32(at);
  }

  slice(from: number, to: number): Uint8Array {
    this.need(to);
    return this.all.subarray(from, to);
  }

  mac(at: number): string {
    return Array.from(this.slice(at, at + 6), hex).join(":");
  }

  ipv4(at: number): string {
    return this.slice(at, at + 4).join(".");
  }

  ipv6(at: number): string {
    const parts = Array.from({ length: 8 }, (_, part) => this.u16(at + 2 * part));
    return shortest(parts);
  }

  /** Text of another's making in UTF-8, where what is none stands as `\xNN`. */
  text(from: number, to: number): string {
    const part = this.all.subarray(from, Math.min(to, this.all.length));
    try {
      return decoder.decode(part);
    } catch {
      return Array.from(part, (byte) => (byte < 0x80 ? String.fromCharCode(byte) : `\\x${hex(byte)}`)).join("");
    }
  }

  /** The same, of one sign for each byte, so that places in it are places in the packet. */
  bytewise(from: number, to: number): string {
    const end = Math.min(to, this.all.length);
    let text = "";
    // No function takes any number of arguments.
    for (let at = from; at < end; at += MOST_ARGUMENTS) text += String.fromCharCode(...this.slice(at, Math.min(end, at + MOST_ARGUMENTS)));
    return text;
  }
}

export function hex(byte: number): string {
  return byte.toString(16).padStart(2, "0");
}

/** The text of an IPv6 address with its longest run of zeros left out (RFC 5952). */
export function shortest(parts: number[]): string {
  let best = { at: -1, length: 1 };
  for (let at = 0; at < 8; ) {
    let end = at;
    while (end < 8 && parts[end] === 0) end += 1;
    if (end - at > best.length) best = { at, length: end - at };
    at = Math.max(end, at + 1);
  }
  const text = (from: number, to: number) => parts.slice(from, to).map((part) => part.toString(16)).join(":");
  return best.at < 0 ? text(0, 8) : `${text(0, best.at)}::${text(best.at + best.length, 8)}`;
}
