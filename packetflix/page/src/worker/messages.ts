// What the page and its worker say to each other.

import type { Layer } from "./dissect";
import type { Second } from "./window";

export interface Source {
  /** What is captured, for people. */
  name: string;
  url: string;
  protocols: string[];
}

export type ToWorker =
  | { do: "start"; source: Source; most: number }
  | { do: "stop" }
  | { do: "filter"; expression: string }
  | { do: "pause"; isPaused: boolean }
  /** Those of the rows that there are. */
  | { do: "rows"; from: number; to: number }
  /** Counted from the first row that there ever was under the filter. */
  /** Of the packet of this number, or, where the page does not know it, of a row. */
  | { do: "detail"; row: number; number: number | undefined }
  | { do: "conversations" }
  | { do: "save" };

export interface Row {
  number: number;
  /** Seconds since the first packet. */
  time: number;
  target: string;
  link: string;
  direction: string;
  source: string;
  destination: string;
  /** Of both, where these are names. */
  addresses: [string, string];
  protocol: string;
  length: number;
  summary: string;
  /** Packets that were lost before it. */
  lost: number;
  colour: string;
}

export interface Detail {
  row: number;
  layers: Layer[];
  bytes: Uint8Array;
  time: string;
  link: string;
  length: number;
}

/** An end of a conversation: its name, or else its address, each with its port. */
export interface End {
  name: string;
  address: string;
}

export interface ConversationRow {
  key: string;
  protocol: string;
  link: string;
  from: End;
  to: End;
  packets: [number, number];
  bytes: [number, number];
  duration: number;
  roundTrip: number | undefined;
  retransmissions: number;
  resets: number;
}

export interface Status {
  /** Rows that there are, under the filter. */
  count: number;
  total: number;
  /** Packets that were given up for others. */
  gone: number;
  bytes: number;
  lost: number;
  seconds: Second[];
  /** Packets that are still to be held against the filter. */
  behind: number;
}

export type FromWorker =
  | ({ is: "status" } & Status)
  /** `gone`: how many there were before the first that there is. */
  | { is: "rows"; from: number; gone: number; rows: Row[] }
  | { is: "detail"; detail: Detail | undefined }
  | { is: "conversations"; conversations: ConversationRow[]; forgotten: number }
  | { is: "filter"; error: string | undefined }
  | { is: "begun" }
  | { is: "ended"; code: number; reason: string; begun: boolean }
  | { is: "file"; file: Blob; total: number };
