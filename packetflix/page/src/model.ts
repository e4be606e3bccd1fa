// What the service tells, as `openapi.json` describes it.

export interface Interface {
  name: string;
  altnames?: string[];
  index: number;
  state: "up" | "down";
  mac?: string;
  addresses: string[];
}

export interface Target {
  name: string;
  type: string;
  prefix: string;
  netns: number;
  pid?: number;
  starttime?: number;
  host: boolean;
  /** Nothing is known of it but what somebody has called it. */
  isUnlisted?: boolean;
  "network-interfaces": Interface[];
  mounts?: string[];
  pod?: { namespace: string; name: string };
  container?: {
    id: string;
    engine?: string;
    state: string;
    images: string[];
    labels: Record<string, string>;
  };
}

export interface TargetList {
  "scanned-at": number;
  "node-name": string;
  engines: { socket: string; workloads: number; problem?: string }[];
  gaps?: string[];
  targets: Target[];
}

export interface CaptureList {
  captures: RunningCapture[];
}

export interface RunningCapture {
  id: number;
  client: { name?: string; address?: string };
  target: { name?: string; type?: string; prefix?: string; netns: number };
  found?: { name: string; type: string; prefix?: string; names: string[] };
  "network-interfaces"?: string[];
  filter?: string;
  duration: number;
  packets: number;
  bytes: number;
  "packets-per-second": number;
  "bytes-per-second": number;
  dropped: { kernel: number; "slow-client": number };
}

/** What tells a target from all others. */
export function keyOf(target: Target): string {
  return JSON.stringify([target.type, target.prefix, target.name, target.netns, target.container?.id]);
}

/** A target of which somebody has typed the name. */
export function called(name: string): Target {
  return { name, type: "", prefix: "", netns: 0, host: false, isUnlisted: true, "network-interfaces": [] };
}

export function fullName(target: { name: string; prefix: string }): string {
  return target.prefix ? `${target.prefix}:${target.name}` : target.name;
}

/** Names of interfaces that a capture would have. */
export function addressesOf(target: Target): string[] {
  const all = target["network-interfaces"].filter((link) => link.name !== "lo").flatMap((link) => link.addresses);
  return all.map((address) => address.replace(/\/\d+$/, "")).filter((address) => !address.startsWith("fe80:"));
}
