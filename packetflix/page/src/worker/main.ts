// The worker: it has the streams and the window, so that the page draws and does nothing else.

import { shortest } from "./bytes";
import { type Conversation, Conversations, MARKS, type Side, isTrouble } from "./conversations";
import { type Layer, type Packet, type Stream, dissect } from "./dissect";
import { type Seen, parse } from "./filter";
import type { ConversationRow, FromWorker, Row, Source, ToWorker } from "./messages";
import { type Kept, Window } from "./window";

/** How often the page is told what there is, in milliseconds. */
const TOLD = 100;

/** How long packets are held against a filter before something else has its turn, in milliseconds. */
const TURN = 20;

/** Most rows that are told at once. */
const MOST_ROWS = 500;

/** Most signs of a summary. */
const MOST_SUMMARY = 1000;

/** Most conversations that are told. */
const MOST_CONVERSATIONS = 500;

let source: Source | undefined;
let socket: WebSocket | undefined;
let conversations = new Conversations();
let window = new Window(0, conversations);
let filter: ((seen: Seen) => boolean) | undefined;
/** Numbers of the packets that the filter lets through, and of the next that it is to be asked about. */
let matches: number[] = [];
let asked = 0;
/** How many matches were given up with their packets. */
let gone = 0;
/** Up to which packet the page is shown any, if it is paused. */
let paused: number | undefined;
let wanted = { from: 0, to: 0 };

function tell(message: FromWorker): void {
  postMessage(message);
}

function shown(): number {
  return paused ?? window.total;
}

function rowCount(): number {
  return filter ? matches.length : Math.max(0, shown() - window.first);
}

/** How many rows there were before the first that there is. */
function goneRows(): number {
  return filter ? gone : window.first;
}

/** The packet of a row, counted from the first row that there ever was. */
function numberOf(row: number): number | undefined {
  return filter ? matches[row - gone] : row;
}

function start(message: Extract<ToWorker, { do: "start" }>): void {
  source = message.source;
  conversations = new Conversations();
  window = new Window(message.most, conversations);
  socket = open(source);
}

function open(source: Source): WebSocket {
  const socket = new WebSocket(source.url, source.protocols);
  let hasBegun = false;
  let refusal: string | undefined;
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => {
    if (typeof data === "string") {
      refusal = sentenceOf(data);
      return;
    }
    if (!hasBegun) tell({ is: "begun" });
    hasBegun = true;
    try {
      window.add(data);
    } catch (error) {
      socket.close(1000);
      tell({ is: "ended", code: 1002, reason: (error as Error).message, begun: true });
      socket.onclose = null;
    }
  };
  socket.onclose = ({ code, reason }) => {
    // What came last, before it is said that this was the last.
    tellStatus();
    tell({ is: "ended", code, reason: refusal ?? reason, begun: hasBegun });
  };
  return socket;
}

/** Why there is no capture, as the service has told it. */
function sentenceOf(message: string): string {
  const said: { error?: unknown } = JSON.parse(message);
  return String(said.error);
}

/** Names of an address, as the stream told them. */
function named(address: string): string | undefined {
  if (address.includes(":")) {
    const parts = address.split("::");
    if (address.split(":").length === 6 && parts.length === 1) return undefined;
    return window.names.get(bytesOf(address).join("."));
  }
  return window.names.get(address);
}

/** The bytes of an IPv6 address. */
function bytesOf(address: string): number[] {
  const [head = "", tail] = address.split("::");
  const groups = (text: string) => (text ? text.split(":") : []);
  const [front, back] = [groups(head), groups(tail ?? "")];
  const middle = tail === undefined ? [] : Array<string>(Math.max(0, 8 - front.length - back.length)).fill("0");
  return [...front, ...middle, ...back].flatMap((group) => {
    const value = Number.parseInt(group, 16);
    return [value >> 8, value & 0xff];
  });
}

function look(kept: Kept): { packet: Packet; seen: Seen } {
  const link = window.links[kept.link]!;
  const stream: Stream = { ownFirst: kept.ownFirst, otherFirst: kept.otherFirst, mark: MARKS[kept.mark]! };
  const packet = dissect(kept.bytes, link.linkType, kept.captured < kept.length, stream);
  const seen: Seen = {
    packet,
    target: link.target || (source?.name ?? ""),
    link: link.name,
    direction: kept.direction,
    length: kept.length,
    named: packet.addresses.flatMap((address) => named(address) ?? []),
    mark: MARKS[kept.mark]!,
  };
  return { packet, seen };
}

const COLOURS = ["dns", "dhcp", "arp", "icmp", "icmpv6", "http", "tls", "tcp", "udp"];

function colourOf(packet: Packet, kept: Kept): string {
  if ((packet.tcp?.flags ?? 0) & 4) return "reset";
  if (isTrouble(kept.mark)) return "retransmission";
  return COLOURS.find((name) => packet.protocols.includes(name)) ?? "other";
}

function rowOf(number: number): Row | undefined {
  const kept = window.get(number);
  if (!kept) return undefined;
  const { packet, seen } = look(kept);
  const last = packet.layers.filter((layer) => layer.name !== "Data").at(-1);
  return {
    number,
    time: Number(kept.time - (window.began ?? kept.time)) / 1e9,
    target: seen.target,
    link: seen.link,
    direction: kept.direction,
    source: named(packet.source) ?? packet.source,
    destination: named(packet.destination) ?? packet.destination,
    addresses: [packet.source, packet.destination],
    protocol: last?.name ?? "?",
    length: kept.length,
    summary: packet.summary.length > MOST_SUMMARY ? `${packet.summary.slice(0, MOST_SUMMARY)}…` : packet.summary,
    lost: kept.lost,
    colour: colourOf(packet, kept),
  };
}

function tellRows(): void {
  const to = Math.min(wanted.to, rowCount(), wanted.from + MOST_ROWS);
  const rows: Row[] = [];
  for (let row = wanted.from; row < to; row += 1) {
    const number = numberOf(goneRows() + row);
    const told = number === undefined ? undefined : rowOf(number);
    if (told) rows.push(told);
  }
  tell({ is: "rows", from: wanted.from, gone: goneRows(), rows });
}

function tellStatus(): void {
  tell({
    is: "status",
    count: rowCount(),
    total: window.total,
    gone: window.first,
    bytes: window.bytes,
    lost: window.lost,
    seconds: window.seconds,
    behind: filter ? shown() - asked : 0,
  });
}

/** Holds packets against the filter that were not yet, for a while. */
function catchUp(): void {
  if (!filter) return;
  const until = performance.now() + TURN;
  asked = Math.max(asked, window.first);
  while (asked < shown()) {
    const kept = window.get(asked);
    if (kept && filter(look(kept).seen)) matches.push(asked);
    asked += 1;
    if (asked % 64 === 0 && performance.now() > until) break;
  }
  const first = matches.findIndex((number) => number >= window.first);
  gone += matches.splice(0, first < 0 ? matches.length : first).length;
}

function setFilter(expression: string): void {
  const parsed = parse(expression);
  const isError = typeof parsed === "string";
  tell({ is: "filter", error: isError ? parsed : undefined });
  if (isError) return;
  filter = parsed;
  matches = [];
  gone = 0;
  asked = window.first;
}

/** A layer whose addresses have their names beside them. */
function withNames(layer: Layer): Layer {
  if (!["IPv4", "IPv6"].includes(layer.name)) return layer;
  const fields = layer.fields.map((field) => {
    const name = ["source", "destination"].includes(field.name) ? named(field.value) : undefined;
    return name === undefined ? field : { ...field, value: `${field.value} (${name})` };
  });
  return { ...layer, fields };
}

function tellDetail(row: number, chosen: number | undefined): void {
  // The rows may be others by now than those in which it was chosen.
  const number = chosen ?? numberOf(row);
  const kept = number === undefined ? undefined : window.get(number);
  if (!kept) return tell({ is: "detail", detail: undefined });
  const { packet, seen } = look(kept);
  const milliseconds = new Date(Number(kept.time / 1_000_000n)).toISOString().slice(0, -1);
  const rest = String(kept.time % 1_000_000n).padStart(6, "0");
  return tell({
    is: "detail",
    detail: {
      row,
      layers: packet.layers.map(withNames),
      bytes: kept.bytes.slice(),
      time: `${milliseconds.replace("T", " ")}${rest}`,
      link: seen.link,
      length: kept.length,
    },
  });
}

/** An address as people write it. */
function written(address: string): string {
  if (!address.includes(":")) return address;
  const parts = address.split(":").flatMap((part) => {
    const value = Number.parseInt(part, 16);
    return [value >>> 16, value & 0xffff];
  });
  return shortest(parts);
}

/** An end of a conversation, by its name, and by its address. */
function endOf({ address, port }: Side): { name: string; address: string } {
  const text = written(address);
  const behind = port === undefined ? "" : `:${port}`;
  // A port is no part of the address (RFC 5952, section 6).
  const plain = text.includes(":") && behind ? `[${text}]` : text;
  return { name: (named(text) ?? plain) + behind, address: plain + behind };
}

function tellConversations(): void {
  const all = conversations.values();
  const busy = (one: Conversation) => one.sides[0].bytes + one.sides[1].bytes;
  all.sort((one, other) => busy(other) - busy(one));
  const rows: ConversationRow[] = all.slice(0, MOST_CONVERSATIONS).map((one) => {
    const [own, other] = one.sides;
    const link = window.links[one.link]!;
    return {
      key: String(one.number),
      protocol: one.protocol,
      link: link.name,
      from: endOf(own),
      to: endOf(other),
      packets: [own.packets, other.packets],
      bytes: [own.bytes, other.bytes],
      duration: one.last - one.began,
      roundTrip: one.roundTrip,
      retransmissions: own.retransmissions + other.retransmissions,
      resets: one.resets,
    };
  });
  tell({ is: "conversations", conversations: rows, forgotten: conversations.forgotten + Math.max(0, all.length - rows.length) });
}

onmessage = ({ data }: MessageEvent<ToWorker>) => {
  switch (data.do) {
    case "start":
      return start(data);
    case "stop":
      // What came until now, the final statistics and the end are still to come.
      if (socket?.readyState === WebSocket.OPEN) socket.send("stop");
      else socket?.close();
      return;
    case "filter":
      setFilter(data.expression);
      return;
    case "pause":
      paused = data.isPaused ? window.total : undefined;
      return;
    case "rows":
      wanted = { from: data.from, to: data.to };
      return tellRows();
    case "detail":
      return tellDetail(data.row, data.number);
    case "conversations":
      return tellConversations();
    case "save":
      return tell({ is: "file", file: new Blob([...window.file()], { type: "application/x-pcapng" }), total: window.total });
  }
};

setInterval(() => {
  catchUp();
  tellStatus();
  tellRows();
}, TOLD);

