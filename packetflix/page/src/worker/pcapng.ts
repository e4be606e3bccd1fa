// Blocks of pcapng as our service writes them: little endian, whole, one section.
//
// Source: draft-ietf-opsawg-pcapng.

export const SECTION = 0x0a0d0d0a;
export const INTERFACE = 1;
export const STATISTICS = 5;
export const NAMES = 4;
export const PACKET = 6;

/** Bytes of an Enhanced Packet Block before the packet. */
export const PACKET_HEAD = 28;

export interface Block {
  kind: number;
  /** Where it begins and how long it is. */
  at: number;
  length: number;
}

/** The blocks of a message; what is not whole is told by the place where it begins. */
export function blocks(view: DataView, each: (block: Block) => void): number {
  let at = 0;
  while (at + 12 <= view.byteLength) {
    const length = view.getUint32(at + 4, true);
    if (length < 12 || length % 4) throw new Error("the stream is not pcapng");
    if (at + length > view.byteLength) break;
    each({ kind: view.getUint32(at, true), at, length });
    at += length;
  }
  return at;
}

/** Options between two places: their codes, and where their values are. */
export function* options(view: DataView, from: number, to: number): Generator<{ code: number; at: number; length: number }> {
  let at = from;
  while (at + 4 <= to) {
    const code = view.getUint16(at, true);
    const length = view.getUint16(at + 2, true);
    if (code === 0 || at + 4 + length > to) return;
    yield { code, at: at + 4, length };
    at += 4 + ((length + 3) & ~3);
  }
}

const decoder = new TextDecoder();

export function text(view: DataView, at: number, length: number): string {
  return decoder.decode(new Uint8Array(view.buffer, view.byteOffset + at, length));
}

export interface InterfaceDescription {
  linkType: number;
  name: string;
}

export function interfaceDescription(view: DataView, { at, length }: Block): InterfaceDescription {
  let name = "";
  for (const option of options(view, at + 16, at + length - 4)) {
    if (option.code === 2) name = text(view, option.at, option.length);
  }
  return { linkType: view.getUint16(at + 8, true), name };
}

/** Addresses and their names (section 4.5). */
export function* names(view: DataView, { at, length }: Block): Generator<{ address: Uint8Array; name: string }> {
  const end = at + length - 4;
  let place = at + 8;
  while (place + 4 <= end) {
    const kind = view.getUint16(place, true);
    const size = view.getUint16(place + 2, true);
    if (kind === 0 || place + 4 + size > end) return;
    const addressLength = kind === 1 ? 4 : kind === 2 ? 16 : 0;
    if (addressLength && size > addressLength) {
      const address = new Uint8Array(view.buffer, view.byteOffset + place + 4, addressLength).slice();
      const name = text(view, place + 4 + addressLength, size - addressLength).split("\0")[0] ?? "";
      yield { address, name };
    }
    place += 4 + ((size + 3) & ~3);
  }
}

/** Packets that an interface lost, as its statistics tell: option isb_ifdrop. */
export function lost(view: DataView, { at, length }: Block): number | undefined {
  for (const option of options(view, at + 20, at + length - 4)) {
    if (option.code === 5 && option.length === 8) return Number(view.getBigUint64(option.at, true));
  }
  return undefined;
}

const IN = 1;
const OUT = 2;

/** Direction of a packet, and how many were lost before it. */
export function packetOptions(view: DataView, at: number): { direction: "in" | "out" | ""; lost: number } {
  const length = view.getUint32(at + 4, true);
  const captured = view.getUint32(at + 20, true);
  let direction: "in" | "out" | "" = "";
  let dropped = 0;
  for (const option of options(view, at + PACKET_HEAD + ((captured + 3) & ~3), at + length - 4)) {
    if (option.code === 2) {
      const bits = view.getUint32(option.at, true) & 3;
      direction = bits === IN ? "in" : bits === OUT ? "out" : "";
    } else if (option.code === 4) dropped = Number(view.getBigUint64(option.at, true));
  }
  return { direction, lost: dropped };
}
