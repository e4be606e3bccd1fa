// Who talks to whom, as packets come: counts, times, and what TCP tells of losses.

import type { Stream } from "./dissect";

/** Most conversations that are followed at the same time. */
const MOST = 20_000;

const SYN = 2;
const RST = 4;
const FIN = 1;
const ACK = 16;

export interface Side {
  address: string;
  port: number | undefined;
  packets: number;
  bytes: number;
  /** First sequence number, and the next that is expected. */
  first: number | undefined;
  next: number | undefined;
  retransmissions: number;
}

export interface Conversation {
  link: number;
  protocol: string;
  sides: [Side, Side];
  began: number;
  last: number;
  resets: number;
  /** Seconds from a SYN to its answer. */
  roundTrip: number | undefined;
  syn: number | undefined;
}

/** Marks of packets, as they are kept. */
export const MARKS = ["", "retransmission", "keep-alive", "out of order"];
const RETRANSMISSION = 1;
const KEEP_ALIVE = 2;
const RESET_COLOUR = 4;

function side(address: string, port: number | undefined): Side {
  return { address, port, packets: 0, bytes: 0, first: undefined, next: undefined, retransmissions: 0 };
}

/** Distance between two sequence numbers, from the first to the second. */
function distance(from: number, to: number): number {
  return (to - from) | 0;
}

export class Conversations {
  private readonly all = new Map<string, Conversation>();
  /** How many were given up for others. */
  forgotten = 0;

  values(): Conversation[] {
    return [...this.all.values()];
  }

  /** Takes in a packet of IP at `at`, of `link`; gives the mark of a segment of TCP. */
  add(view: DataView, at: number, end: number, link: number, time: number, length: number): number {
    const seen = addressing(view, at, end);
    if (!seen) return 0;
    const { protocol, source, destination, ports } = seen;
    const [from, to] = ports ? [`${source}|${ports[0]}`, `${destination}|${ports[1]}`] : [source, destination];
    const isFirst = from <= to;
    const key = isFirst ? `${link}|${protocol}|${from}|${to}` : `${link}|${protocol}|${to}|${from}`;
    let conversation = this.all.get(key);
    if (!conversation) {
      if (this.all.size >= MOST) {
        const oldest = this.all.keys().next().value!;
        this.all.delete(oldest);
        this.forgotten += 1;
      }
      const sides: [Side, Side] = [side(source, ports?.[0]), side(destination, ports?.[1])];
      if (!isFirst) sides.reverse();
      conversation = { link, protocol: protocolName(protocol), sides, began: time, last: time, resets: 0, roundTrip: undefined, syn: undefined };
      this.all.set(key, conversation);
    }
    conversation.last = time;
    const own = conversation.sides[isFirst ? 0 : 1];
    const other = conversation.sides[isFirst ? 1 : 0];
    own.packets += 1;
    own.bytes += length;
    return seen.tcp === undefined ? 0 : segment(conversation, own, other, view, seen.tcp, seen.payload, time);
  }

  /** What is known of the stream that a packet belongs to. */
  stream(view: DataView, at: number, end: number, link: number): Stream | undefined {
    const seen = addressing(view, at, end);
    if (!seen?.ports) return undefined;
    const [from, to] = [`${seen.source}|${seen.ports[0]}`, `${seen.destination}|${seen.ports[1]}`];
    const isFirst = from <= to;
    const conversation = this.all.get(isFirst ? `${link}|${seen.protocol}|${from}|${to}` : `${link}|${seen.protocol}|${to}|${from}`);
    if (!conversation) return undefined;
    const [own, other] = isFirst ? conversation.sides : [conversation.sides[1], conversation.sides[0]];
    return { ownFirst: own.first, otherFirst: other.first, mark: "" };
  }
}

function segment(conversation: Conversation, own: Side, other: Side, view: DataView, at: number, payload: number, time: number): number {
  const sequence = view.getUint32(at + 4);
  const acknowledged = view.getUint32(at + 8);
  const flags = view.getUint8(at + 13);
  let mark = 0;
  if (flags & SYN) {
    // A port may be used again: then everything begins anew.
    if (own.first !== sequence) {
      own.first = sequence;
      own.next = undefined;
    }
    if (flags & ACK) {
      if (conversation.syn !== undefined) conversation.roundTrip ??= time - conversation.syn;
    } else conversation.syn ??= time;
  }
  // Where the beginning was not seen, numbers count from what was.
  own.first ??= sequence;
  if (flags & ACK) other.first ??= acknowledged;
  if (flags & RST) {
    conversation.resets += 1;
    mark |= RESET_COLOUR;
  }
  const taken = payload + (flags & SYN ? 1 : 0) + (flags & FIN ? 1 : 0);
  const end = (sequence + taken) >>> 0;
  if (taken > 0 && own.next !== undefined && distance(own.next, end) <= 0) {
    if (payload <= 1 && distance(own.next, sequence) === -1) mark |= KEEP_ALIVE;
    else {
      mark |= RETRANSMISSION;
      own.retransmissions += 1;
    }
  }
  if (own.next === undefined || distance(own.next, end) > 0) own.next = end;
  return mark;
}

interface Addressing {
  protocol: number;
  source: string;
  destination: string;
  ports: [number, number] | undefined;
  /** Where the header of TCP is, if it is whole, and how much follows it. */
  tcp: number | undefined;
  payload: number;
}

function protocolName(protocol: number): string {
  return { 1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6" }[protocol] ?? `IP ${protocol}`;
}

/** Only what is quickly had: each packet passes here. */
function addressing(view: DataView, at: number, end: number): Addressing | undefined {
  if (at + 20 > end) return undefined;
  const version = view.getUint8(at) >> 4;
  let source: string;
  let destination: string;
  let protocol: number;
  let begin: number;
  let stop: number;
  if (version === 4) {
    if (view.getUint16(at + 6) & 0x1fff) return undefined;
    source = v4(view, at + 12);
    destination = v4(view, at + 16);
    protocol = view.getUint8(at + 9);
    begin = at + (view.getUint8(at) & 15) * 4;
    stop = at + (view.getUint16(at + 2) || end - at);
  } else if (version === 6 && at + 40 <= end) {
    source = v6(view, at + 8);
    destination = v6(view, at + 24);
    protocol = view.getUint8(at + 6);
    begin = at + 40;
    stop = begin + (view.getUint16(at + 4) || end - begin);
  } else return undefined;
  const hasPorts = (protocol === 6 || protocol === 17) && begin + 8 <= end;
  const ports: [number, number] | undefined = hasPorts ? [view.getUint16(begin), view.getUint16(begin + 2)] : undefined;
  const isTcp = protocol === 6 && begin + 20 <= end;
  const header = isTcp ? (view.getUint8(begin + 12) >> 4) * 4 : 0;
  return { protocol, source, destination, ports, tcp: isTcp ? begin : undefined, payload: Math.max(0, stop - begin - header) };
}

function v4(view: DataView, at: number): string {
  return `${view.getUint8(at)}.${view.getUint8(at + 1)}.${view.getUint8(at + 2)}.${view.getUint8(at + 3)}`;
}

/** Not for people, but one text for one address. */
function v6(view: DataView, at: number): string {
  return `${view.getUint32(at).toString(16)}:${view.getUint32(at + 4).toString(16)}:${view.getUint32(at + 8).toString(16)}:${view.getUint32(at + 12).toString(16)}`;
}

/** Where IP begins in a packet, if it does. */
export function ipAt(view: DataView, at: number, end: number, linkType: number): number | undefined {
  if (linkType === 101) return at;
  if (linkType !== 1) return undefined;
  let place = at + 12;
  for (let tags = 0; tags < 3 && place + 2 <= end; tags += 1) {
    const type = view.getUint16(place);
    if (type === 0x0800 || type === 0x86dd) return place + 2;
    if (type !== 0x8100 && type !== 0x88a8 && type !== 0x9100) return undefined;
    place += 4;
  }
  return undefined;
}
