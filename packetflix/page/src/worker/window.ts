// The last packets, as they came, in a bounded amount of memory.

import { type Conversations, ipAt } from "./conversations";
import * as pcapng from "./pcapng";

export interface Link {
  /** The target that it is of, where the stream has several. */
  target: string;
  name: string;
  linkType: number;
  /** As its packets and its statistics tell, whichever know of more. */
  lost: number;
  lostBefore: number;
  /** Its description, as it came. */
  block: Uint8Array;
}

interface Chunk {
  view: DataView;
  packets: number;
}

/** Packets for which there is room at first. */
const FIRST_ROOM = 1 << 14;

/** Most blocks of names that are kept for a file. */
const MOST_NAME_BLOCKS = 64;

/** Most addresses of which names are kept. */
const MOST_NAMES = 65_536;

/** Which first sequence numbers are known of a packet. */
const OWN = 1;
const OTHER = 2;

/** Seconds of which rates are kept. */
const SECONDS = 300;

export interface Second {
  second: number;
  packets: number;
  bytes: number;
}

export class Window {
  readonly links: Link[] = [];
  readonly names = new Map<string, string>();
  readonly seconds: Second[] = [];
  /** Numbers of packets are counted from the first that came. */
  total = 0;
  first = 0;
  bytes = 0;
  lost = 0;
  began: bigint | undefined;
  private chunks: Chunk[] = [];
  /** Number of the first chunk that is kept. */
  private firstChunk = 0;
  private room = FIRST_ROOM;
  private chunkOf = new Uint32Array(FIRST_ROOM);
  private placeOf = new Uint32Array(FIRST_ROOM);
  private linkOf = new Uint32Array(FIRST_ROOM);
  private markOf = new Uint8Array(FIRST_ROOM);
  /** First sequence numbers of both sides, as they were known when the packet came; and which of them were. */
  private ownFirstOf = new Uint32Array(FIRST_ROOM);
  private otherFirstOf = new Uint32Array(FIRST_ROOM);
  private knownOf = new Uint8Array(FIRST_ROOM);
  private readonly nameBlocks: Uint8Array[] = [];
  private section: Uint8Array | undefined;
  /** The beginning of a block, the rest of which is still to come. */
  private rest = new Uint8Array();

  constructor(
    readonly most: number,
    private readonly conversations: Conversations,
  ) {}

  /** Takes in a message of the stream. */
  add(message: ArrayBuffer): void {
    let bytes = new Uint8Array(message);
    if (this.rest.length) {
      const whole = new Uint8Array(this.rest.length + bytes.length);
      whole.set(this.rest);
      whole.set(bytes, this.rest.length);
      bytes = whole;
    }
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const chunk: Chunk = { view, packets: 0 };
    const number = this.firstChunk + this.chunks.length;
    const end = pcapng.blocks(view, (block) => this.take(view, block, number, chunk));
    this.rest = bytes.slice(end);
    this.chunks.push(chunk);
    this.bytes += view.byteLength;
    this.drop();
  }

  private take(view: DataView, block: pcapng.Block, chunk: number, into: Chunk): void {
    const copy = () => new Uint8Array(view.buffer, view.byteOffset + block.at, block.length).slice();
    switch (block.kind) {
      case pcapng.SECTION:
        this.section = copy();
        break;
      case pcapng.INTERFACE: {
        const { name, linkType } = pcapng.interfaceDescription(view, block);
        // No name of an interface has a slash: of several targets, each is called `web/eth0`.
        const end = name.lastIndexOf("/");
        this.links.push({ target: name.slice(0, Math.max(0, end)), name: name.slice(end + 1), linkType, lost: 0, lostBefore: 0, block: copy() });
        break;
      }
      case pcapng.NAMES:
        this.nameBlocks.push(copy());
        if (this.nameBlocks.length > MOST_NAME_BLOCKS) this.nameBlocks.shift();
        for (const { address, name } of pcapng.names(view, block)) this.name(address.join("."), name);
        break;
      case pcapng.STATISTICS: {
        const link = this.links[view.getUint32(block.at + 8, true)];
        const lost = pcapng.lost(view, block);
        if (link && lost !== undefined) this.lose(link, lost);
        break;
      }
      case pcapng.PACKET:
        this.packet(view, block, chunk);
        into.packets += 1;
        break;
      default:
    }
  }

  /** Takes in the name of an address. The oldest are given up: who starts containers again and again has new addresses without end. */
  private name(address: string, name: string): void {
    this.names.delete(address);
    this.names.set(address, name);
    const [oldest] = this.names.keys();
    if (this.names.size > MOST_NAMES && oldest !== undefined) this.names.delete(oldest);
  }

  /** Takes in how many packets a link has lost by now. */
  private lose(link: Link, lost: number): void {
    this.lost += Math.max(0, lost - link.lost);
    link.lost = Math.max(link.lost, lost);
  }

  private packet(view: DataView, block: pcapng.Block, chunk: number): void {
    if (this.total - this.first === this.room) this.grow();
    const link = view.getUint32(block.at + 8, true);
    const of = this.links[link]!;
    const { lost } = pcapng.packetOptions(view, block.at);
    if (lost > 0) {
      of.lostBefore += lost;
      this.lose(of, of.lostBefore);
    }
    const slot = this.total % this.room;
    this.chunkOf[slot] = chunk;
    this.placeOf[slot] = block.at;
    this.linkOf[slot] = link;
    const captured = view.getUint32(block.at + 20, true);
    const length = view.getUint32(block.at + 24, true);
    const time = timeOf(view, block.at);
    this.began ??= time;
    const from = block.at + pcapng.PACKET_HEAD;
    const ip = ipAt(view, from, from + captured, of.linkType);
    const seconds = Number(time) / 1e9;
    const told = ip === undefined ? undefined : this.conversations.add(view, ip, from + captured, link, seconds, length);
    this.markOf[slot] = told?.mark ?? 0;
    this.ownFirstOf[slot] = told?.ownFirst ?? 0;
    this.otherFirstOf[slot] = told?.otherFirst ?? 0;
    this.knownOf[slot] = (told?.ownFirst === undefined ? 0 : OWN) | (told?.otherFirst === undefined ? 0 : OTHER);
    this.count(Math.floor(seconds), length);
    this.total += 1;
  }

  private count(second: number, length: number): void {
    let at = this.seconds.length - 1;
    // Packets are nearly in order.
    while (at >= 0 && this.seconds[at]!.second > second) at -= 1;
    if (at < 0 || this.seconds[at]!.second < second) {
      this.seconds.splice(at + 1, 0, { second, packets: 0, bytes: 0 });
      at += 1;
      if (this.seconds.length > SECONDS) {
        this.seconds.shift();
        at -= 1;
        if (at < 0) return;
      }
    }
    this.seconds[at]!.packets += 1;
    this.seconds[at]!.bytes += length;
  }

  private grow(): void {
    const bigger = this.room * 2;
    const move = <A extends Uint32Array | Uint8Array>(old: A, next: A): A => {
      for (let number = this.first; number < this.total; number += 1) next[number % bigger] = old[number % this.room]!;
      return next;
    };
    this.chunkOf = move(this.chunkOf, new Uint32Array(bigger));
    this.placeOf = move(this.placeOf, new Uint32Array(bigger));
    this.linkOf = move(this.linkOf, new Uint32Array(bigger));
    this.markOf = move(this.markOf, new Uint8Array(bigger));
    this.ownFirstOf = move(this.ownFirstOf, new Uint32Array(bigger));
    this.otherFirstOf = move(this.otherFirstOf, new Uint32Array(bigger));
    this.knownOf = move(this.knownOf, new Uint8Array(bigger));
    this.room = bigger;
  }

  /** Gives up the oldest messages beyond the bound; the last one stays. */
  private drop(): void {
    let gone = 0;
    while (this.bytes > this.most && gone < this.chunks.length - 1) {
      const chunk = this.chunks[gone]!;
      this.bytes -= chunk.view.byteLength;
      this.first += chunk.packets;
      gone += 1;
    }
    if (gone) {
      this.chunks.splice(0, gone);
      this.firstChunk += gone;
    }
  }

  /** A packet by its number, if it is still there. */
  get(number: number): Kept | undefined {
    if (number < this.first || number >= this.total) return undefined;
    const slot = number % this.room;
    const { view } = this.chunks[this.chunkOf[slot]! - this.firstChunk]!;
    const at = this.placeOf[slot]!;
    const captured = view.getUint32(at + 20, true);
    const known = this.knownOf[slot]!;
    return {
      view,
      at,
      link: this.linkOf[slot]!,
      mark: this.markOf[slot]!,
      ownFirst: known & OWN ? this.ownFirstOf[slot]! : undefined,
      otherFirst: known & OTHER ? this.otherFirstOf[slot]! : undefined,
      time: timeOf(view, at),
      length: view.getUint32(at + 24, true),
      captured,
      bytes: new Uint8Array(view.buffer, view.byteOffset + at + pcapng.PACKET_HEAD, captured),
      ...pcapng.packetOptions(view, at),
    };
  }

  /** What is in the window as a file: the section, all interfaces, the names of addresses, and the packets. */
  *file(): Generator<Uint8Array<ArrayBuffer>> {
    if (!this.section) return;
    yield this.section as Uint8Array<ArrayBuffer>;
    for (const block of [...this.links.map((link) => link.block), ...this.nameBlocks]) yield block as Uint8Array<ArrayBuffer>;
    for (let number = this.first; number < this.total; number += 1) {
      const { view, at } = this.get(number)!;
      yield new Uint8Array(view.buffer, view.byteOffset + at, view.getUint32(at + 4, true)) as Uint8Array<ArrayBuffer>;
    }
  }
}

export interface Kept {
  view: DataView;
  at: number;
  link: number;
  mark: number;
  ownFirst: number | undefined;
  otherFirst: number | undefined;
  /** Nanoseconds since 1970. */
  time: bigint;
  length: number;
  captured: number;
  bytes: Uint8Array;
  direction: "in" | "out" | "";
  lost: number;
}

function timeOf(view: DataView, at: number): bigint {
  return (BigInt(view.getUint32(at + 12, true)) << 32n) | BigInt(view.getUint32(at + 16, true));
}
