// What is to be captured of the targets that were chosen, and what becomes of it.

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { FileList, type Files } from "./files";
import { type Target, fullName } from "./model";
import { type Wish, command, curl, excessOf, nameOf, pathOf, wiresharkAddress } from "./request";
import { Refusal, askJson, dial } from "./service";
import { plural, readable } from "./text";
import type { Source } from "./worker/messages";

/** How long somebody has to rest from typing before a filter is held against the service, in milliseconds. */
const REST = 250;

const COMMON = ["tcp", "udp port 53", "icmp or icmp6", "arp", "tcp port 80 or tcp port 443", "tcp[tcpflags] & (tcp-syn|tcp-rst) != 0", "not port 22"];

interface Props {
  targets: Target[];
  wish: Wish;
  files: Files;
  onWish: (wish: Wish) => void;
  onWatch: (source: Source) => void;
  onClose: () => void;
}

/** What the service says of a filter, if it does not take it. */
function useFilterError(filter: string): string | undefined {
  const [error, setError] = useState<string>();
  useEffect(() => {
    setError(undefined);
    if (!filter.trim()) return undefined;
    const leaving = new AbortController();
    const timer = setTimeout(async () => {
      try {
        await askJson(`filter?${new URLSearchParams({ expr: filter.trim() })}`, { signal: leaving.signal });
      } catch (refused) {
        if (refused instanceof Refusal) setError(refused.message);
      }
    }, REST);
    return () => {
      clearTimeout(timer);
      leaving.abort();
    };
  }, [filter]);
  return error;
}

export function Capture({ targets, wish, files, onWish, onWatch, onClose }: Props) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [copied, setCopied] = useState("");
  const error = useFilterError(wish.filter);
  const excess = excessOf(targets, wish);
  const isRefused = error !== undefined || excess !== undefined;
  const there = targets.flatMap((target) => target["network-interfaces"].map((link) => link.name));
  // One that has gone meanwhile is asked for still, and can be seen to be.
  const names = [...new Set([...there, ...wish.interfaces])];
  const set = (part: Partial<Wish>) => onWish({ ...wish, ...part });

  // Until this is done it is there and not seen.
  useLayoutEffect(() => dialog.current?.showModal(), []);
  useEffect(() => {
    // What other targets had was meant for these.
    set({ interfaces: wish.interfaces.filter((name) => there.includes(name)) });
  }, []);

  const watch = () => onWatch({ name: nameOf(targets), ...dial(pathOf(targets, wish)) });
  const copy = async (what: string, text: string) => {
    try {
      await navigator.clipboard.writeText(text);
      setCopied(`${what} is in the clipboard`);
    } catch {
      setCopied(text);
    }
  };
  const toggle = (name: string) =>
    set({ interfaces: wish.interfaces.includes(name) ? wish.interfaces.filter((one) => one !== name) : [...wish.interfaces, name] });
  const limit = (name: "packets" | "duration" | "bytes" | "snaplen", label: string, hint: string) => (
    <label>
      {label} <input size={8} value={wish[name]} placeholder={hint} onInput={(event) => set({ [name]: event.currentTarget.value })} />
    </label>
  );

  return (
    <dialog ref={dialog} class="capture" aria-labelledby="capture-title" onClose={onClose}>
      <h2 id="capture-title">Capture {targets.length === 1 ? <bdi>{readable(fullName(targets[0]!))}</bdi> : plural(targets.length, "target")}</h2>
      {targets.length > 1 && (
        <div class="names" tabIndex={0} role="region" aria-label="Targets that are captured">{targets.map((target) => readable(fullName(target))).join(", ")}</div>
      )}
      <p class="error" role="alert">{excess}</p>
      <fieldset>
        <legend>Interfaces</legend>
        <label>
          <input type="checkbox" checked={wish.interfaces.length === 0} onChange={() => set({ interfaces: [] })} /> all, those that come later too
        </label>
        <div class="choices interfaces">
          {names.map((name) => (
            <label key={name}>
              <input type="checkbox" checked={wish.interfaces.includes(name)} onChange={() => toggle(name)} /> <bdi>{readable(name)}</bdi>
            </label>
          ))}
        </div>
      </fieldset>
      <label class="filter">
        Filter, as for tcpdump
        <input
          list="common-filters"
          value={wish.filter}
          spellcheck={false}
          placeholder="everything"
          aria-invalid={error !== undefined}
          aria-describedby="filter-error"
          onInput={(event) => set({ filter: event.currentTarget.value })}
        />
      </label>
      <datalist id="common-filters">
        {COMMON.map((filter) => (
          <option key={filter} value={filter} />
        ))}
      </datalist>
      <p id="filter-error" class="error" role="alert">{error && readable(error)}</p>
      <fieldset>
        <legend>Limits</legend>
        <div class="choices">
          {limit("packets", "packets", "none")}
          {limit("duration", "duration", "10s, 5m")}
          {limit("bytes", "size", "10MiB")}
          {limit("snaplen", "bytes of each packet", "all")}
          <label>
            <input type="checkbox" checked={!wish.promiscuous} onChange={() => set({ promiscuous: !wish.promiscuous })} /> no promiscuous mode
          </label>
        </div>
      </fieldset>
      <div class="bar">
        <button type="button" class="main" disabled={isRefused} onClick={watch}>Watch here</button>
        <button type="button" disabled={isRefused} onClick={() => files.begin(targets, wish)}>Save</button>
        <a class="button" href={wiresharkAddress(targets, wish)}>Open in Wireshark</a>
        <button type="button" onClick={() => copy("the command", command(targets, wish))}>Copy as command</button>
        <button type="button" onClick={() => copy("the call of curl", curl(targets, wish))}>Copy for curl</button>
        <button type="button" onClick={() => dialog.current?.close()}>Close</button>
      </div>
      <p role="status" class="copied">{copied}</p>
      <FileList files={files} />
    </dialog>
  );
}
