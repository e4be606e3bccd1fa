// What there is to capture: grouped, searched, with its traffic.

import { useMemo, useRef, useState } from "preact/hooks";
import type { Live } from "./live";
import { type Target, addressesOf, fullName, keyOf } from "./model";
import { Rows } from "./rows";
import { age, bytes, plural, readable, short } from "./text";

/** How the list is looked at. */
export interface Look {
  search: string;
  grouping: Grouping;
}

type Grouping = "engine" | "pod" | "compose" | "none";

/** A target, what tells it from all others, and what is searched in it. */
interface Known {
  target: Target;
  key: string;
  words: string;
}

type Line = { key: string } & ({ group: string; count: number } | { target: Target });

const ROW = 30;

/** Ticks of a clock in a second, in which the kernel tells start times on all architectures. */
const TICKS = 100;

const HOST = "the host";

function groupOf(target: Target, grouping: Grouping): string {
  if (target.host) return HOST;
  const project = target.container?.labels["com.docker.compose.project"];
  switch (grouping) {
    case "pod":
      return target.pod ? `pod ${target.pod.namespace}/${target.pod.name}` : "in no pod";
    case "compose":
      return project ? `project ${project}` : "of no compose project";
    case "engine": {
      const engine = target.container?.engine;
      return engine ? `${target.type} at ${engine}` : target.type;
    }
    case "none":
      return "";
  }
}

/** What is searched in a target, in lower case. */
function wordsOf(target: Target): string {
  const { container, pod } = target;
  const labels = Object.entries(container?.labels ?? {}).map(([name, value]) => `${name}=${value}`);
  const all = [
    fullName(target),
    target.type,
    String(target.netns),
    ...(target.pid ? [String(target.pid)] : []),
    ...addressesOf(target),
    ...target["network-interfaces"].map((link) => link.name),
    ...(target.mounts ?? []),
    ...(container ? [container.id, ...container.images, ...labels] : []),
    ...(pod ? [`${pod.namespace}/${pod.name}`] : []),
  ];
  return all.join("\n").toLowerCase();
}

function linesOf(targets: Known[], searched: string[], grouping: Grouping): Line[] {
  const groups = new Map<string, Known[]>();
  for (const known of targets) {
    if (!searched.every((word) => known.words.includes(word))) continue;
    const group = groupOf(known.target, grouping);
    const members = groups.get(group);
    if (members) members.push(known);
    else groups.set(group, [known]);
  }
  const lines: Line[] = [];
  for (const [group, members] of [...groups].sort(([one], [other]) => one.localeCompare(other))) {
    if (grouping !== "none") lines.push({ key: `group ${group}`, group, count: members.length });
    lines.push(...members);
  }
  return lines;
}

/** A line of what was, as high as its highest. */
function Sparkline({ values }: { values: number[] }) {
  const most = Math.max(...values, 1);
  const points = values.map((value, at) => `${60 - values.length + at},${(15 - (14 * value) / most).toFixed(1)}`);
  return (
    <svg class="spark" viewBox="0 0 60 16" width="60" height="16" aria-hidden="true">
      <polyline points={points.join(" ")} />
    </svg>
  );
}

interface Props {
  live: Live;
  look: Look;
  onLook: (look: Look) => void;
  chosen: Set<string>;
  onChoose: (chosen: Set<string>) => void;
  onCapture: (targets: Target[]) => void;
}

export function Targets({ live, look, onLook, chosen, onChoose, onCapture }: Props) {
  const { search, grouping } = look;
  /** The line at which somebody is, also when others come and go around it; and where it was when it was there last. */
  const [place, setPlace] = useState<string>();
  const was = useRef(0);
  const targets = live.list?.targets ?? [];
  const known = useMemo(() => targets.map((target): Known => ({ target, key: keyOf(target), words: wordsOf(target) })), [targets]);
  const searched = search.toLowerCase().split(/\s+/).filter(Boolean);
  const lines = useMemo(
    () => linesOf(known, searched, grouping),
    [known, grouping, searched.join(" ")],
  );
  // Those that are there still.
  const those = known.filter(({ key }) => chosen.has(key)).map(({ target }) => target);
  const found = lines.reduce((count, line) => count + ("target" in line ? 1 : 0), 0);

  const active = place === undefined ? 0 : lines.findIndex(({ key }) => key === place);
  if (active >= 0) was.current = active;

  const toggle = (at: number) => {
    const line = lines[at];
    if (!line) return;
    const next = new Set(chosen);
    const flip = (key: string, to: boolean) => {
      if (to) next.add(key);
      else next.delete(key);
    };
    if ("target" in line) flip(line.key, !chosen.has(line.key));
    else {
      const end = lines.findIndex((other, index) => index > at && "group" in other);
      const members = lines.slice(at + 1, end < 0 ? lines.length : end).map(({ key }) => key);
      const all = members.every((key) => chosen.has(key));
      members.forEach((key) => flip(key, !all));
    }
    onChoose(next);
  };
  const open = (at: number) => {
    const line = lines[at];
    if (line && "target" in line) {
      onChoose(new Set([line.key]));
      onCapture([line.target]);
    }
  };

  return (
    <section class="targets-view" aria-label="Targets">
      <div class="bar">
        <label class="grow">
          Search{" "}
          <input
            type="search"
            value={search}
            placeholder="name, image, address, label=value …"
            onInput={(event) => {
              onLook({ ...look, search: event.currentTarget.value });
              setPlace(undefined);
            }}
          />
        </label>
        <label>
          Group by{" "}
          <select value={grouping} onChange={(event) => onLook({ ...look, grouping: event.currentTarget.value as Grouping })}>
            <option value="engine">engine</option>
            <option value="pod">pod</option>
            <option value="compose">compose project</option>
            <option value="none">nothing</option>
          </select>
        </label>
        <button type="button" class="main" disabled={those.length === 0} onClick={() => onCapture(those)}>
          Capture {those.length > 0 ? plural(those.length, "target") : "…"}
        </button>
        <span class="count" role="status">
          {live.list ? `${plural(found, "target")} of ${targets.length.toLocaleString("en")}` : "looking for targets …"}
        </span>
      </div>
      <Doubts live={live} />
      <Rows
        id="targets"
        label="Targets"
        count={lines.length}
        height={ROW}
        columns={8}
        keyOf={(at) => lines[at]!.key}
        active={active}
        was={was.current}
        onActive={(at) => setPlace(lines[at]?.key)}
        onToggle={toggle}
        isChosen={(at) => ("target" in lines[at]! ? chosen.has(lines[at].key) : undefined)}
        onOpen={open}
        head={
          <>
            <span role="columnheader" class="pick"><span class="hidden">chosen</span></span>
            <span role="columnheader" class="name">name</span>
            <span role="columnheader" class="type">type</span>
            <span role="columnheader" class="image">image</span>
            <span role="columnheader" class="age">age</span>
            <span role="columnheader" class="addresses">addresses</span>
            <span role="columnheader" class="links">interfaces</span>
            <span role="columnheader" class="rate">traffic</span>
          </>
        }
        row={(at) => {
          const line = lines[at]!;
          if ("group" in line) {
            return (
              <span role="gridcell" class="group" aria-colspan={8} onClick={() => toggle(at)}>
                {readable(line.group)} ({line.count})
              </span>
            );
          }
          return <TargetCells target={line.target} live={live} isChosen={chosen.has(line.key)} onToggle={() => toggle(at)} />;
        }}
      />
    </section>
  );
}

function TargetCells(props: { target: Target; live: Live; isChosen: boolean; onToggle: () => void }) {
  const { target, live, isChosen, onToggle } = props;
  const traffic = live.traffic.get(target.netns);
  const isUnseen = live.unseen.has(target.netns);
  const name = readable(fullName(target));
  const addresses = addressesOf(target).join(" ");
  const images = (target.container?.images ?? []).map(readable).join(" ");
  const since = target.starttime !== undefined && live.uptime !== undefined ? live.uptime - target.starttime / TICKS : undefined;
  return (
    <>
      <span role="gridcell" class="pick">
        <input type="checkbox" tabIndex={-1} checked={isChosen} aria-label={`choose ${name}`} onChange={onToggle} />
      </span>
      <span role="gridcell" class="name" title={name}><bdi>{name}</bdi></span>
      <span role="gridcell" class="type">{readable(target.type)}</span>
      <span role="gridcell" class="image" title={images}><bdi>{images}</bdi></span>
      <span role="gridcell" class="age">{since === undefined ? "" : age(since)}</span>
      <span role="gridcell" class="addresses" title={addresses}>{addresses}</span>
      <span role="gridcell" class="links">
        {target["network-interfaces"].map((link) => (
          <span key={link.index} class={`link ${link.state}`} title={`${readable(link.name)} is ${link.state}`}>
            <bdi>{readable(link.name)}</bdi>
            {link.state === "down" && <span class="hidden"> is down</span>}
          </span>
        ))}
      </span>
      <span role="gridcell" class="rate">
        {isUnseen ? (
          <span class="doubt">not known</span>
        ) : (
          <>
            <Sparkline values={live.history.get(target.netns) ?? []} />
            <span class="number">{short(traffic?.packets ?? 0)}/s</span>
            <span class="number">{bytes(traffic?.bytes ?? 0)}/s</span>
          </>
        )}
      </span>
    </>
  );
}

/** What could not be looked at, and why. */
function Doubts({ live }: { live: Live }) {
  const problems = (live.list?.engines ?? []).filter((engine) => engine.problem).map((engine) => `the engine at ${engine.socket}: ${engine.problem}`);
  // An engine's problem is a gap of its own.
  const gaps = live.list?.gaps ?? problems;
  if (gaps.length === 0) return null;
  return (
    <details class="doubts">
      <summary>{plural(gaps.length, "place")} could not be looked at: there may be more targets than are listed</summary>
      <ul>
        {gaps.map((gap) => (
          <li key={gap}>{readable(gap)}</li>
        ))}
      </ul>
    </details>
  );
}
