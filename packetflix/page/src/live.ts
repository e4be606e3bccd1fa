// What the service tells again and again: the targets, and how much traffic they have.

import { useEffect, useState } from "preact/hooks";
import type { Target, TargetList } from "./model";
import { Refusal, askJson, events } from "./service";

/** Packets and bytes per second: received and sent packets, received and sent bytes. */
type Rate = [number, number, number, number];

interface RatesEvent {
  uptime: number;
  rates: Record<string, Record<string, Rate>>;
  unseen?: number[];
}

/** How much traffic a target has, as a capture of it would see it. */
export interface Traffic {
  packets: number;
  bytes: number;
}

/** How many rates are remembered of each namespace, for its line. */
const REMEMBERED = 60;

const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 5000;

export interface Live {
  list: TargetList | undefined;
  /** Why there is nothing newer, if so. */
  trouble: Error | undefined;
  uptime: number | undefined;
  unseen: Set<number>;
  traffic: Map<number, Traffic>;
  history: Map<number, number[]>;
}

/** A packet of the loopback device is received as it is sent, and captured once. */
function trafficOf(links: Record<string, Rate>, loopback: Set<number>): Traffic {
  const sum = { packets: 0, bytes: 0 };
  for (const [index, [rxPackets, txPackets, rxBytes, txBytes]] of Object.entries(links)) {
    const isLoopback = loopback.has(Number(index));
    sum.packets += rxPackets + (isLoopback ? 0 : txPackets);
    sum.bytes += rxBytes + (isLoopback ? 0 : txBytes);
  }
  return sum;
}

/** By the number of the namespace: indexes of what is called `lo`. */
function loopbacks(targets: Target[]): Map<number, Set<number>> {
  return new Map(
    targets.map((target) => {
      const links = target["network-interfaces"].filter((link) => link.name === "lo");
      return [target.netns, new Set(links.map((link) => link.index))];
    }),
  );
}

function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

/** Follows the service while the page is looked at. `session` is another number after somebody has signed in. */
export function useLive(session: number): Live {
  const [live, setLive] = useState<Live>({
    list: undefined,
    trouble: undefined,
    uptime: undefined,
    unseen: new Set(),
    traffic: new Map(),
    history: new Map(),
  });
  const [isHidden, setHidden] = useState(document.hidden);
  useEffect(() => {
    const note = () => setHidden(document.hidden);
    document.addEventListener("visibilitychange", note);
    return () => document.removeEventListener("visibilitychange", note);
  }, []);
  // What another was shown is not shown to whoever has signed in since.
  useEffect(() => setLive((live) => ({ ...live, list: undefined })), [session]);
  useEffect(() => {
    if (isHidden) return undefined;
    const leaving = new AbortController();
    void follow(leaving.signal, setLive);
    return () => leaving.abort();
  }, [session, isHidden]);
  return live;
}

async function follow(signal: AbortSignal, setLive: (change: (live: Live) => Live) => void): Promise<void> {
  let wait = FIRST_PAUSE;
  while (!signal.aborted) {
    let trouble: Error = new Error("the service has ended the connection");
    try {
      let links = new Map<number, Set<number>>();
      const look = async () => {
        const list = await askJson<TargetList>("targets", { signal });
        links = loopbacks(list.targets);
        setLive((live) => ({ ...live, list, trouble: undefined }));
      };
      // It is there before any rates are: these take a look into each namespace.
      const first = look();
      // It is waited for below, unless nothing comes there either.
      first.catch(() => undefined);
      for await (const { kind, data } of events("rates", signal)) {
        wait = FIRST_PAUSE;
        if (kind === "targets") {
          await first;
          await look();
        } else if (kind === "rates") {
          const said: RatesEvent = JSON.parse(data);
          setLive((live) => take(live, said, links));
        }
      }
    } catch (error) {
      trouble = error as Error;
    }
    if (signal.aborted) return;
    setLive((live) => ({ ...live, trouble, traffic: new Map() }));
    if (trouble instanceof Refusal && [401, 403].includes(trouble.status)) return;
    await pause(wait, signal);
    wait = Math.min(LONGEST_PAUSE, wait * 2);
  }
}

function take(live: Live, said: RatesEvent, links: Map<number, Set<number>>): Live {
  const traffic = new Map<number, Traffic>();
  const history = new Map(live.history);
  for (const [netns, rates] of Object.entries(said.rates)) {
    traffic.set(Number(netns), trafficOf(rates, links.get(Number(netns)) ?? new Set()));
    if (!history.has(Number(netns))) history.set(Number(netns), []);
  }
  for (const [netns, before] of history) {
    const now = traffic.get(netns)?.bytes ?? 0;
    const next = [...before.slice(1 - REMEMBERED), now];
    // One that has been silent for all the time that is shown is as one that never said anything.
    if (next.some((value) => value > 0)) history.set(netns, next);
    else history.delete(netns);
  }
  return { ...live, trouble: undefined, uptime: said.uptime, unseen: new Set(said.unseen), traffic, history };
}
