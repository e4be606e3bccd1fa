// A packet, taken apart as far as people look at it: layers, their fields, and a line on the whole.

import { Bytes, Short, hex } from "./bytes";
import { dhcp } from "./dhcp";
import { dns } from "./dns";
import { http } from "./http";
import { tls } from "./tls";

export interface Field {
  name: string;
  value: string;
  /** Its place in the packet. */
  from: number;
  to: number;
}

export interface Layer {
  name: string;
  from: number;
  to: number;
  fields: Field[];
}

/** What is known of a packet. */
export interface Packet {
  layers: Layer[];
  /** Names of the protocols, the outermost first, in lower case. */
  protocols: string[];
  source: string;
  destination: string;
  /** MAC addresses, IP addresses and ports of both ends, as filters know them. */
  addresses: string[];
  ports: number[];
  summary: string;
  tcp?: { flags: number; length: number };
}

/** What the stream as a whole has taught of a segment of TCP. */
export interface Stream {
  /** First sequence numbers of whoever sends this, and of the other. */
  ownFirst: number | undefined;
  otherFirst: number | undefined;
  mark: string;
}

/** Most layers of a packet that are told: packets are made by anyone. */
const MOST_LAYERS = 32;

/** Where a layer's fields are put. */
export class Out {
  readonly packet: Packet = {
    layers: [],
    protocols: [],
    source: "",
    destination: "",
    addresses: [],
    ports: [],
    summary: "",
  };

  constructor(
    readonly bytes: Bytes,
    readonly stream: Stream | undefined,
  ) {}

  layer(name: string, protocol: string, from: number): (name: string, value: string | number, from: number, to: number) => void {
    const layer: Layer = { name, from, to: this.bytes.length, fields: [] };
    this.packet.layers.push(layer);
    this.packet.protocols.push(protocol);
    return (name, value, from, to) => {
      layer.fields.push({ name, value: String(value), from, to });
    };
  }

  /** Whether what lies in the last layer is no more than bytes. */
  isDeep(): boolean {
    return this.packet.layers.length >= MOST_LAYERS;
  }

  end(to: number): void {
    const layer = this.packet.layers.at(-1);
    if (layer) layer.to = Math.min(to, this.bytes.length);
  }

  between(source: string, destination: string): void {
    this.packet.source = source;
    this.packet.destination = destination;
    this.packet.addresses.push(source, destination);
  }

  say(summary: string): void {
    this.packet.summary = summary;
  }
}

/** Link types that packets begin with otherwise than with Ethernet (the registry of pcap). */
const ETHERNET = 1;
const RAW = 101;

export const FLAGS = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];

export function dissect(all: Uint8Array, linkType: number, isCut: boolean, stream?: Stream): Packet {
  const out = new Out(new Bytes(all), stream);
  try {
    if (linkType === ETHERNET) ethernet(out);
    else if (linkType === RAW) ip(out, 0);
    else data(out, `link type ${linkType}`, 0);
  } catch (error) {
    if (!(error instanceof Short)) throw error;
    const what = isCut ? "the rest was not captured" : "it is shorter than it should be";
    out.packet.layers.at(-1)?.fields.push({ name: "end", value: what, from: all.length, to: all.length });
    out.packet.summary ||= what;
  }
  return out.packet;
}

function data(out: Out, name: string, at: number): void {
  if (at >= out.bytes.length) return;
  const field = out.layer("Data", "data", at);
  field("bytes", out.bytes.length - at, at, out.bytes.length);
  out.packet.summary ||= `${name}, ${out.bytes.length - at} bytes`;
}

function ethernet(out: Out): void {
  const { bytes } = out;
  const field = out.layer("Ethernet", "eth", 0);
  field("destination", bytes.mac(0), 0, 6);
  field("source", bytes.mac(6), 6, 12);
  out.between(bytes.mac(6), bytes.mac(0));
  etherType(out, 12, field);
}

type Put = ReturnType<Out["layer"]>;

const VLAN = [0x8100, 0x88a8, 0x9100];

function etherType(out: Out, at: number, field: Put): void {
  const { bytes } = out;
  const type = bytes.u16(at);
  if (type < 0x600) {
    field("length", type, at, at + 2);
    out.end(at + 2);
    out.say("IEEE 802.3");
    data(out, "802.3", at + 2);
    return;
  }
  field("type", `0x${type.toString(16).padStart(4, "0")}`, at, at + 2);
  out.end(at + 2);
  if (out.isDeep()) data(out, "more layers", at + 2);
  else if (VLAN.includes(type)) {
    const tag = out.layer("VLAN", "vlan", at + 2);
    const control = bytes.u16(at + 2);
    tag("priority", control >> 13, at + 2, at + 4);
    tag("identifier", control & 0xfff, at + 2, at + 4);
    etherType(out, at + 4, tag);
  } else if (type === 0x0800 || type === 0x86dd) ip(out, at + 2);
  else if (type === 0x0806) arp(out, at + 2);
  else {
    out.say(`EtherType 0x${type.toString(16)}`);
    data(out, "Ethernet", at + 2);
  }
}

function arp(out: Out, at: number): void {
  const { bytes } = out;
  const field = out.layer("ARP", "arp", at);
  const operation = bytes.u16(at + 6);
  field("operation", operation === 1 ? "request (1)" : operation === 2 ? "reply (2)" : operation, at + 6, at + 8);
  if (bytes.u8(at + 4) !== 6 || bytes.u8(at + 5) !== 4) return out.say("ARP of other addresses");
  const [mac, own, other] = [bytes.mac(at + 8), bytes.ipv4(at + 14), bytes.ipv4(at + 24)];
  field("sender", `${own} is at ${mac}`, at + 8, at + 18);
  field("target", other, at + 24, at + 28);
  out.packet.addresses.push(own, other);
  out.end(at + 28);
  return out.say(operation === 1 ? `who has ${other}? tell ${own}` : `${own} is at ${mac}`);
}

function ip(out: Out, at: number): void {
  if (out.isDeep()) return data(out, "more layers", at);
  const version = out.bytes.u8(at) >> 4;
  if (version === 4) return ipv4(out, at);
  if (version === 6) return ipv6(out, at);
  return data(out, `IP version ${version}`, at);
}

function ipv4(out: Out, at: number): void {
  const { bytes } = out;
  const field = out.layer("IPv4", "ip", at);
  const length = (bytes.u8(at) & 15) * 4;
  const total = bytes.u16(at + 2);
  const fragment = bytes.u16(at + 6);
  const protocol = bytes.u8(at + 9);
  field("header length", `${length} bytes`, at, at + 1);
  field("differentiated services", `0x${hex(bytes.u8(at + 1))}`, at + 1, at + 2);
  field("total length", total, at + 2, at + 4);
  field("identification", `0x${bytes.u16(at + 4).toString(16)}`, at + 4, at + 6);
  field("fragment", `${fragment & 0x4000 ? "do not fragment, " : ""}${fragment & 0x2000 ? "more follow, " : ""}offset ${(fragment & 0x1fff) * 8}`, at + 6, at + 8);
  field("time to live", bytes.u8(at + 8), at + 8, at + 9);
  field("protocol", protocol, at + 9, at + 10);
  field("checksum", `0x${bytes.u16(at + 10).toString(16).padStart(4, "0")}`, at + 10, at + 12);
  field("source", bytes.ipv4(at + 12), at + 12, at + 16);
  field("destination", bytes.ipv4(at + 16), at + 16, at + 20);
  out.between(bytes.ipv4(at + 12), bytes.ipv4(at + 16));
  const end = at + length;
  if (length < 20) throw new Short();
  out.end(end);
  if (fragment & 0x1fff) return out.say(`fragment from byte ${(fragment & 0x1fff) * 8} of IPv4 ${bytes.u16(at + 4)}`);
  // Super-packets of segmentation offload may tell no length.
  return transport(out, end, protocol, total ? at + total : bytes.length);
}

const EXTENSIONS: Record<number, string> = { 0: "hop-by-hop options", 43: "routing", 44: "fragment", 60: "destination options" };

function ipv6(out: Out, at: number): void {
  const { bytes } = out;
  const field = out.layer("IPv6", "ipv6", at);
  const payload = bytes.u16(at + 4);
  let next = bytes.u8(at + 6);
  field("traffic class", `0x${hex((bytes.u16(at) >> 4) & 0xff)}`, at, at + 2);
  field("flow label", `0x${(bytes.u32(at) & 0xfffff).toString(16)}`, at, at + 4);
  field("payload length", payload, at + 4, at + 6);
  field("next header", next, at + 6, at + 7);
  field("hop limit", bytes.u8(at + 7), at + 7, at + 8);
  field("source", bytes.ipv6(at + 8), at + 8, at + 24);
  field("destination", bytes.ipv6(at + 24), at + 24, at + 40);
  out.between(bytes.ipv6(at + 8), bytes.ipv6(at + 24));
  let end = at + 40;
  for (let count = 0; next in EXTENSIONS && count < 8; count += 1) {
    const length = next === 44 ? 8 : (bytes.u8(end + 1) + 1) * 8;
    field(EXTENSIONS[next]!, `${length} bytes`, end, end + length);
    if (next === 44 && bytes.u16(end + 2) >> 3) {
      out.end(end + length);
      return out.say(`fragment from byte ${bytes.u16(end + 2) & 0xfff8} of IPv6`);
    }
    next = bytes.u8(end);
    end += length;
  }
  out.end(end);
  return transport(out, end, next, payload ? at + 40 + payload : bytes.length);
}

const PROTOCOLS: Record<number, string> = { 2: "IGMP", 4: "IPv4 in IP", 41: "IPv6 in IP", 47: "GRE", 50: "ESP", 51: "AH", 89: "OSPF", 132: "SCTP" };

function transport(out: Out, at: number, protocol: number, end: number): void {
  switch (protocol) {
    case 1:
      return icmp(out, at, false);
    case 58:
      return icmp(out, at, true);
    case 6:
      return tcp(out, at, end);
    case 17:
      return udp(out, at, end);
    case 4:
    case 41:
      return ip(out, at);
    default: {
      const name = PROTOCOLS[protocol] ?? `IP protocol ${protocol}`;
      out.say(name);
      return data(out, name, at);
    }
  }
}

const ICMP4: Record<number, string> = { 0: "echo reply", 3: "destination unreachable", 4: "source quench", 5: "redirect", 8: "echo request", 11: "time exceeded", 12: "parameter problem" };
const ICMP6: Record<number, string> = { 1: "destination unreachable", 2: "packet too big", 3: "time exceeded", 4: "parameter problem", 128: "echo request", 129: "echo reply", 130: "listener query", 131: "listener report", 133: "router solicitation", 134: "router advertisement", 135: "neighbour solicitation", 136: "neighbour advertisement", 137: "redirect", 143: "listener report" };
const UNREACHABLE: Record<number, string> = { 0: "network", 1: "host", 2: "protocol", 3: "port", 4: "fragmentation is needed", 13: "prohibited" };

const UNREACHABLE6: Record<number, string> = { 0: "no route", 1: "prohibited", 2: "beyond the scope of the source", 3: "address", 4: "port", 5: "source address failed policy", 6: "route is to be rejected" };
const EMBEDDED: Record<number, string> = { 1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6" };

function icmp(out: Out, at: number, isSix: boolean): void {
  const { bytes } = out;
  const field = out.layer(isSix ? "ICMPv6" : "ICMP", isSix ? "icmpv6" : "icmp", at);
  const [type, code] = [bytes.u8(at), bytes.u8(at + 1)];
  const name = (isSix ? ICMP6 : ICMP4)[type] ?? `type ${type}`;
  field("type", `${name} (${type})`, at, at + 1);
  field("code", code, at + 1, at + 2);
  const isEcho = isSix ? type === 128 || type === 129 : type === 0 || type === 8;
  if (isEcho) {
    field("identifier", bytes.u16(at + 4), at + 4, at + 6);
    field("sequence", bytes.u16(at + 6), at + 6, at + 8);
    return out.say(`${name}, identifier ${bytes.u16(at + 4)}, sequence ${bytes.u16(at + 6)}`);
  }
  if (isSix && (type === 135 || type === 136)) {
    field("target", bytes.ipv6(at + 8), at + 8, at + 24);
    return out.say(`${name} of ${bytes.ipv6(at + 8)}`);
  }
  const what = !isSix && type === 3 ? `: ${UNREACHABLE[code] ?? `code ${code}`}` : isSix && type === 1 ? `: ${UNREACHABLE6[code] ?? `code ${code}`}` : "";
  out.say(name + what);
  if (!(isSix ? type < 128 : [3, 4, 5, 11, 12].includes(type))) return;
  let more = "";
  if (!isSix && type === 3 && code === 4) {
    field("MTU", bytes.u16(at + 6), at + 6, at + 8);
    more = `, MTU ${bytes.u16(at + 6)}`;
  } else if (isSix && type === 2) {
    field("MTU", bytes.u32(at + 4), at + 4, at + 8);
    more = `, MTU ${bytes.u32(at + 4)}`;
  } else if (!isSix && type === 5) {
    field("gateway", bytes.ipv4(at + 4), at + 4, at + 8);
    more = `, gateway ${bytes.ipv4(at + 4)}`;
  }
  out.say(name + what + more);
  const of = embedded(out, at + 8, field);
  if (of) out.say(`${name}${what}${more}, of ${of}`);
}

/** The packet that an error of ICMP is about, of which the beginning is in it. */
function embedded({ bytes, packet }: Out, at: number, field: Put): string | undefined {
  if (at >= bytes.length) return undefined;
  const isSix = bytes.u8(at) >> 4 === 6;
  if (!isSix && bytes.u8(at) >> 4 !== 4) return undefined;
  const address = (place: number) => (isSix ? bytes.ipv6(place) : bytes.ipv4(place));
  const [from, to, length] = isSix ? [at + 8, at + 24, 16] : [at + 12, at + 16, 4];
  const [source, destination] = [address(from), address(to)];
  const protocol = bytes.u8(isSix ? at + 6 : at + 9);
  field("source of the packet", source, from, from + length);
  field("destination of the packet", destination, to, to + length);
  packet.addresses.push(source, destination);
  const name = EMBEDDED[protocol] ?? `protocol ${protocol}`;
  field("protocol of the packet", name, isSix ? at + 6 : at + 9, isSix ? at + 7 : at + 10);
  const behind = at + (isSix ? 40 : (bytes.u8(at) & 15) * 4);
  const hasPorts = (protocol === 6 || protocol === 17) && behind + 4 <= bytes.length;
  if (!hasPorts) return `${name} ${source} → ${destination}`;
  const ports = [bytes.u16(behind), bytes.u16(behind + 2)] as const;
  field("ports of the packet", `${ports[0]} → ${ports[1]}`, behind, behind + 4);
  packet.ports.push(...ports);
  return `${name} ${source} ${ports[0]} → ${destination} ${ports[1]}`;
}

function portsOf(out: Out, at: number, field: Put): [number, number] {
  const { bytes, packet } = out;
  const ports: [number, number] = [bytes.u16(at), bytes.u16(at + 2)];
  field("source port", ports[0], at, at + 2);
  field("destination port", ports[1], at + 2, at + 4);
  packet.ports.push(...ports);
  return ports;
}

function tcp(out: Out, at: number, packetEnd: number): void {
  const { bytes, packet, stream } = out;
  const field = out.layer("TCP", "tcp", at);
  const [from, to] = portsOf(out, at, field);
  const [sequence, acknowledged] = [bytes.u32(at + 4), bytes.u32(at + 8)];
  const header = (bytes.u8(at + 12) >> 4) * 4;
  const flags = bytes.u8(at + 13);
  const window = bytes.u16(at + 14);
  const length = Math.max(0, packetEnd - at - header);
  const relative = (number: number, first: number | undefined) => (first === undefined ? number : (number - first) >>> 0);
  const seq = relative(sequence, stream?.ownFirst);
  const ack = relative(acknowledged, stream?.otherFirst);
  const names = FLAGS.filter((_, bit) => flags & (1 << bit));
  field("sequence number", stream?.ownFirst === undefined ? sequence : `${seq} (relative), ${sequence}`, at + 4, at + 8);
  field("acknowledgement number", stream?.otherFirst === undefined ? acknowledged : `${ack} (relative), ${acknowledged}`, at + 8, at + 12);
  field("header length", `${header} bytes`, at + 12, at + 13);
  field("flags", names.join(", ") || "none", at + 13, at + 14);
  field("window", window, at + 14, at + 16);
  field("checksum", `0x${bytes.u16(at + 16).toString(16).padStart(4, "0")}`, at + 16, at + 18);
  if (stream?.mark) field("analysis", stream.mark, at, at + header);
  packet.tcp = { flags, length };
  const mark = stream?.mark ? `[${stream.mark}] ` : "";
  out.say(`${mark}${from} → ${to} [${names.join(", ")}] seq ${seq}${flags & 16 ? ` ack ${ack}` : ""} win ${window} len ${length}`);
  if (header < 20) throw new Short();
  if (header > 20) tcpOptions(bytes, at + 20, at + header, field);
  out.end(at + header);
  const begin = at + header;
  const end = Math.min(packetEnd, bytes.length);
  if (begin >= end) return;
  if (tls(out, begin, end, mark) || http(out, begin, end, mark)) return;
  if ((from === 53 || to === 53) && bytes.length >= begin + 14) {
    return dns(out, begin + 2, end);
  }
  const payload = out.layer("Data", "data", begin);
  payload("bytes", length, begin, end);
}

/** Options of TCP by their kind: their name, and what is in them. */
const TCP_OPTIONS: Record<number, [string, (bytes: Bytes, at: number, length: number) => string]> = {
  2: ["maximum segment size", (bytes, at) => `${bytes.u16(at)} bytes`],
  3: ["window scale", (bytes, at) => `${bytes.u8(at)} (multiply by ${2 ** bytes.u8(at)})`],
  4: ["selective acknowledgements", () => "permitted"],
  5: [
    "selective acknowledgement",
    (bytes, at, length) => Array.from({ length: Math.floor(length / 8) }, (_, block) => `${bytes.u32(at + 8 * block)}-${bytes.u32(at + 8 * block + 4)}`).join(", "),
  ],
  8: ["timestamps", (bytes, at) => `${bytes.u32(at)}, echo of ${bytes.u32(at + 4)}`],
};

/** Lengths of what is in options that have but one. */
const LENGTHS: Record<number, number> = { 2: 2, 3: 1, 4: 0, 8: 8 };

/** The options of a header of TCP (RFC 9293, section 3.1). */
function tcpOptions(bytes: Bytes, from: number, end: number, field: Put): void {
  for (let at = from; at < end; ) {
    const kind = bytes.u8(at);
    // The end of them, and what is between them.
    if (kind === 0) return;
    if (kind === 1) {
      at += 1;
      continue;
    }
    const length = at + 1 < end ? bytes.u8(at + 1) : 0;
    if (length < 2 || at + length > end) return field("options", "cannot be read from here on", at, end);
    const [name, tell] = TCP_OPTIONS[kind] ?? [`option ${kind}`, () => `${length} bytes`];
    const isWhole = (LENGTHS[kind] ?? length - 2) === length - 2;
    field(name, isWhole ? tell(bytes, at + 2, length - 2) : `${length} bytes, which are not as many as it has`, at, at + length);
    at += length;
  }
}

const DNS_PORTS = [53, 5353, 5355];

function udp(out: Out, at: number, packetEnd: number): void {
  const { bytes } = out;
  const field = out.layer("UDP", "udp", at);
  const [from, to] = portsOf(out, at, field);
  const length = bytes.u16(at + 4);
  field("length", length, at + 4, at + 6);
  field("checksum", `0x${bytes.u16(at + 6).toString(16).padStart(4, "0")}`, at + 6, at + 8);
  out.end(at + 8);
  out.say(`${from} → ${to} len ${Math.max(0, (length || packetEnd - at) - 8)}`);
  const begin = at + 8;
  const end = Math.min(packetEnd, bytes.length);
  if (begin >= end) return;
  if (DNS_PORTS.includes(from) || DNS_PORTS.includes(to)) return dns(out, begin, end);
  if ([67, 68].includes(from) && [67, 68].includes(to)) return dhcp(out, begin, end);
  const payload = out.layer("Data", "data", begin);
  payload("bytes", end - begin, begin, end);
}
