// Who talks to whom, as packets come: counts, times, and what TCP tells of losses.

/** Most conversations that are followed at the same time. */
const MOST = 20_000;

/** Most parts of a stream that are remembered as not seen yet. */
const MOST_HOLES = 16;

/** Within this time, in seconds, what comes late was overtaken on its way; so it is where nothing is known of that. */
const OVERTAKEN = 0.003;

/** Within this time, in seconds, a segment answers the acknowledgments that ask for it again. */
const FAST = 0.02;

const SYN = 2;
const RST = 4;
const FIN = 1;
const ACK = 16;

export interface Side {
  address: string;
  port: number | undefined;
  packets: number;
  bytes: number;
  /** First sequence number. */
  first: number | undefined;
  retransmissions: number;
  sent: Sent;
}

/** How far one side of TCP has got. */
interface Sent {
  /** The next number that is expected, and when it became that. */
  next: number | undefined;
  nextTime: number;
  /** What lies before it and has not been seen, from the first number to the one behind the last. */
  holes: [number, number][];
  /** What it has acknowledged last, when, and how often without anything else. */
  acknowledged: number | undefined;
  acknowledgedTime: number;
  duplicates: number;
  window: number | undefined;
  /** Whether its last segment was to keep the connection. */
  isKeptAlive: boolean;
}

function nothingSent(): Sent {
  return {
    next: undefined,
    nextTime: 0,
    holes: [],
    acknowledged: undefined,
    acknowledgedTime: 0,
    duplicates: 0,
    window: undefined,
    isKeptAlive: false,
  };
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
  /** Seconds from a SYN to the end of the handshake, wherever between the two sides one looks. */
  handshake: number | undefined;
  syn: number | undefined;
  /** Its ends; what comes between them belongs to the latest of the conversations that they had. */
  key: string;
  /** What tells it from all others. */
  number: number;
}

/** What is known of a packet from what came before it. */
export interface Told {
  mark: number;
  /** First sequence numbers of whoever sends it, and of the other. */
  ownFirst: number | undefined;
  otherFirst: number | undefined;
}

const NOTHING_TOLD: Told = { mark: 0, ownFirst: undefined, otherFirst: undefined };

/** Marks of packets, as they are kept: what Wireshark says of them, in its words. */
export const MARKS = [
  "",
  "retransmission",
  "fast retransmission",
  "spurious retransmission",
  "out of order",
  "previous segment not captured",
  "duplicate ACK",
  "zero window",
  "keep-alive",
  "keep-alive ACK",
];
const [NONE, RETRANSMISSION, FAST_RETRANSMISSION, SPURIOUS_RETRANSMISSION, OUT_OF_ORDER, MISSING, DUPLICATE_ACK, ZERO_WINDOW, KEEP_ALIVE, KEEP_ALIVE_ACK] =
  [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] as const;

/** Whether a mark is of something that has gone wrong. */
export function isTrouble(mark: number): boolean {
  return mark > NONE && mark < KEEP_ALIVE;
}

function side(address: string, port: number | undefined): Side {
  return { address, port, packets: 0, bytes: 0, first: undefined, retransmissions: 0, sent: nothingSent() };
}

/** Distance between two sequence numbers, from the first to the second. */
function distance(from: number, to: number): number {
  return (to - from) | 0;
}

export class Conversations {
  /** In the order in which they began. */
  private readonly all = new Set<Conversation>();
  /** The latest by its ends. */
  private readonly latest = new Map<string, Conversation>();
  private begun = 0;
  /** How many were given up for others. */
  forgotten = 0;

  values(): Conversation[] {
    return [...this.all];
  }

  /** Takes in a packet of IP at `at`, of `link`. */
  add(view: DataView, at: number, end: number, link: number, time: number, length: number): Told {
    const seen = addressing(view, at, end);
    if (!seen) return NOTHING_TOLD;
    const { protocol, source, destination, ports } = seen;
    const [from, to] = ports ? [`${source}|${ports[0]}`, `${destination}|${ports[1]}`] : [source, destination];
    const isFirst = from <= to;
    const key = isFirst ? `${link}|${protocol}|${from}|${to}` : `${link}|${protocol}|${to}|${from}`;
    const one = seen.tcp === undefined ? undefined : segmentAt(view, seen.tcp, seen.payload, time);
    let conversation = this.latest.get(key);
    if (!conversation || (one && beginsAnother(conversation, isFirst, one))) {
      const sides: [Side, Side] = [side(source, ports?.[0]), side(destination, ports?.[1])];
      if (!isFirst) sides.reverse();
      const number = this.begun;
      conversation = { link, protocol: protocolName(protocol), sides, began: time, last: time, resets: 0, roundTrip: undefined, handshake: undefined, syn: undefined, key, number };
      this.keep(conversation);
    }
    conversation.last = time;
    const own = conversation.sides[isFirst ? 0 : 1];
    const other = conversation.sides[isFirst ? 1 : 0];
    own.packets += 1;
    own.bytes += length;
    if (!one) return NOTHING_TOLD;
    const mark = segment(conversation, own, other, one);
    return { mark, ownFirst: own.first, otherFirst: other.first };
  }

  private keep(conversation: Conversation): void {
    const [oldest] = this.all;
    if (oldest && this.all.size >= MOST) {
      this.all.delete(oldest);
      if (this.latest.get(oldest.key) === oldest) this.latest.delete(oldest.key);
      this.forgotten += 1;
    }
    this.begun += 1;
    this.all.add(conversation);
    this.latest.set(conversation.key, conversation);
  }
}

/** A segment of TCP, as far as its marks go by it. */
interface Segment {
  sequence: number;
  /** The number behind it. A RST takes none. */
  end: number;
  acknowledged: number;
  flags: number;
  window: number;
  payload: number;
  time: number;
}

function segmentAt(view: DataView, at: number, payload: number, time: number): Segment {
  const sequence = view.getUint32(at + 4);
  const flags = view.getUint8(at + 13);
  const taken = flags & RST ? 0 : payload + (flags & SYN ? 1 : 0) + (flags & FIN ? 1 : 0);
  const end = (sequence + taken) >>> 0;
  return { sequence, end, acknowledged: view.getUint32(at + 8), flags, window: view.getUint16(at + 14), payload, time };
}

/** Whether the ports are used again: a SYN has another first number, or answers one that has. */
function beginsAnother(conversation: Conversation, isFirst: boolean, { sequence, acknowledged, flags }: Segment): boolean {
  const own = conversation.sides[isFirst ? 0 : 1];
  const other = conversation.sides[isFirst ? 1 : 0];
  if (!(flags & SYN) || own.first === undefined || own.first === sequence) return false;
  return !(flags & ACK) || (other.first !== undefined && acknowledged !== ((other.first + 1) >>> 0));
}

function segment(conversation: Conversation, own: Side, other: Side, one: Segment): number {
  begin(conversation, own, other, one);
  if (one.flags & RST) conversation.resets += 1;
  const mark = judge(conversation, own.sent, other.sent, one);
  if (mark === RETRANSMISSION || mark === FAST_RETRANSMISSION || mark === SPURIOUS_RETRANSMISSION) own.retransmissions += 1;
  advance(own.sent, one, mark);
  return mark;
}

/** First numbers, and the time that the handshake takes. */
function begin(conversation: Conversation, own: Side, other: Side, { sequence, acknowledged, flags, time }: Segment): void {
  // The answer to a SYN says it better than what was left of the connection before.
  if (flags & SYN && own.first !== sequence) {
    own.first = sequence;
    own.sent = nothingSent();
  }
  if (flags & SYN && !(flags & ACK)) conversation.syn ??= time;
  if (conversation.syn !== undefined) {
    if (flags & SYN && flags & ACK) conversation.roundTrip ??= time - conversation.syn;
    else if (flags & ACK && conversation.roundTrip !== undefined) conversation.handshake ??= time - conversation.syn;
  }
  // Where the beginning was not seen, numbers count from what was.
  own.first ??= sequence;
  if (flags & ACK) other.first ??= flags & SYN ? (acknowledged - 1) >>> 0 : acknowledged;
}

/** What is to be said of a segment, by Wireshark's rules (User's Guide, section 7.5). */
function judge(conversation: Conversation, own: Sent, other: Sent, one: Segment): number {
  const { sequence, end, acknowledged, flags, window, payload } = one;
  const isPlain = !(flags & (SYN | FIN | RST));
  const ahead = own.next === undefined ? 0 : distance(own.next, sequence);
  if (isPlain && payload <= 1 && ahead === -1) return KEEP_ALIVE;
  if (ahead < 0 && end !== sequence) return again(conversation, own, other, one);
  if (ahead > 0 && !(flags & RST)) return MISSING;
  if (!isPlain) return NONE;
  if (window === 0) return ZERO_WINDOW;
  const isSaidAgain = payload === 0 && ahead === 0 && acknowledged === own.acknowledged && window === own.window;
  if (!isSaidAgain) return NONE;
  return other.isKeptAlive ? KEEP_ALIVE_ACK : DUPLICATE_ACK;
}

/** What is to be said of a segment that begins before others that were seen. */
function again(conversation: Conversation, own: Sent, other: Sent, { sequence, end, payload, time }: Segment): number {
  if (payload > 0 && other.acknowledged !== undefined && distance(end, other.acknowledged) >= 0) return SPURIOUS_RETRANSMISSION;
  const isAskedFor = other.duplicates >= 2 && other.acknowledged === sequence;
  if (isAskedFor && time - other.acknowledgedTime < FAST) return FAST_RETRANSMISSION;
  const isNew = own.holes.some(([from, to]) => distance(from, sequence) >= 0 && distance(end, to) >= 0);
  return isNew && time - own.nextTime < (conversation.handshake ?? OVERTAKEN) ? OUT_OF_ORDER : RETRANSMISSION;
}

/** Takes in how far a side has got with a segment. */
function advance(own: Sent, { sequence, end, acknowledged, flags, window, time }: Segment, mark: number): void {
  if (own.next === undefined || distance(own.next, end) > 0) {
    if (own.next !== undefined && distance(own.next, sequence) > 0) {
      own.holes.push([own.next, sequence]);
      if (own.holes.length > MOST_HOLES) own.holes.shift();
    }
    own.next = end;
    own.nextTime = time;
  }
  if (own.holes.length > 0 && end !== sequence) own.holes = own.holes.flatMap((hole) => without(hole, sequence, end));
  if (flags & ACK) {
    own.acknowledged = acknowledged;
    own.acknowledgedTime = time;
  }
  own.duplicates = mark === DUPLICATE_ACK ? own.duplicates + 1 : 0;
  own.window = window;
  own.isKeptAlive = mark === KEEP_ALIVE;
}

/** What is left of a part of a stream when another part is taken out of it. */
function without([from, to]: [number, number], begin: number, end: number): [number, number][] {
  const left: [number, number][] = [];
  if (distance(from, begin) >= 0 && distance(begin, to) > 0) left.push([from, begin]);
  if (distance(from, end) > 0 && distance(end, to) >= 0) left.push([end, to]);
  const isApart = distance(to, begin) >= 0 || distance(end, from) >= 0;
  return isApart ? [[from, to]] : left.filter(([first, behind]) => first !== behind);
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
