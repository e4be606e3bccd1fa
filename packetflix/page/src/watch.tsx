// Packets as they come, as Wireshark shows them: a list, the layers and bytes of one, conversations, and rates.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Plot } from "./plot";
import { fileName } from "./request";
import { Rows } from "./rows";
import { download } from "./save";
import { base } from "./service";
import { bytes, plural, readable } from "./text";
import type { ConversationRow, Detail, FromWorker, Row, Source, Status, ToWorker } from "./worker/messages";

const ROW = 20;

/** Bytes of the window, of pcapng. */
const WINDOW = 64 * 1024 * 1024;

/** How often conversations are asked for, in milliseconds. */
const CONVERSATIONS = 1000;

interface Ended {
  sentence: string;
  isRefused: boolean;
}

const NOTHING: Status = { count: 0, total: 0, gone: 0, bytes: 0, lost: 0, seconds: [], behind: 0 };

function sentenceOf(code: number, reason: string, begun: boolean): string {
  if (reason) return reason;
  if (code === 1006) return begun ? "the connection broke" : "there was no answer";
  return `ended with ${code}`;
}

interface Props {
  source: Source;
  /** It goes on also when it is not. */
  isShown: boolean;
  /** Is told whether there are packets that are nowhere else. */
  onUnsaved: (isUnsaved: boolean) => void;
  onClose: () => void;
}

export function Watch({ source, isShown, onUnsaved, onClose }: Props) {
  const worker = useRef<Worker | undefined>(undefined);
  const section = useRef<HTMLElement>(null);
  const [status, setStatus] = useState(NOTHING);
  const [rows, setRows] = useState<{ from: number; gone: number; rows: Row[] }>({ from: 0, gone: 0, rows: [] });
  const [detail, setDetail] = useState<Detail>();
  const [conversations, setConversations] = useState<{ rows: ConversationRow[]; forgotten: number }>();
  const [ended, setEnded] = useState<Ended>();
  const [hasBegun, setBegun] = useState(false);
  const [filter, setFilter] = useState("");
  const [filterError, setFilterError] = useState<string>();
  /** Its row is counted from the first that there ever was, since others go away before it; its packet, once it was told. */
  const [active, setActive] = useState<{ row: number; packet: number | undefined }>();
  const [follows, setFollows] = useState(true);
  const [isPaused, setPaused] = useState(false);
  const [view, setView] = useState<"packets" | "conversations" | "rates">("packets");
  /** How many packets had come when it was saved last. */
  const [saved, setSaved] = useState(0);
  const tell = (message: ToWorker) => worker.current?.postMessage(message);

  useEffect(() => {
    const started = new Worker(new URL("ui/worker.js", base));
    worker.current = started;
    started.onmessage = ({ data }: MessageEvent<FromWorker>) => {
      switch (data.is) {
        case "status":
          setStatus(data);
          break;
        case "rows":
          setRows(data);
          break;
        case "detail":
          setDetail(data.detail);
          break;
        case "conversations":
          setConversations({ rows: data.conversations, forgotten: data.forgotten });
          break;
        case "filter":
          setFilterError(data.error);
          break;
        case "begun":
          setBegun(true);
          break;
        case "ended": {
          const sentence = sentenceOf(data.code, data.reason, data.begun);
          setEnded({ sentence, isRefused: !data.begun });
          break;
        }
        case "file":
          download(data.file, fileName(source.name));
          setSaved(data.total);
          break;
      }
    };
    tell({ do: "start", source, most: WINDOW });
    const end = () => started.terminate();
    // A page that was left may be kept for who comes back, and would hold its capture.
    addEventListener("pagehide", end);
    return () => {
      removeEventListener("pagehide", end);
      end();
    };
  }, [source]);
  useEffect(() => {
    // What had the focus is gone with the window in which this was asked for.
    if (isShown && document.activeElement === document.body) section.current!.querySelector<HTMLElement>(".rows")?.focus();
  }, [isShown]);
  const isUnsaved = status.total > saved;
  useEffect(() => onUnsaved(isUnsaved), [isUnsaved]);
  useEffect(() => tell({ do: "filter", expression: filter }), [filter]);
  useEffect(() => tell({ do: "pause", isPaused }), [isPaused]);
  useEffect(() => {
    if (view !== "conversations") return undefined;
    const ask = () => tell({ do: "conversations" });
    ask();
    const timer = setInterval(ask, CONVERSATIONS);
    return () => clearInterval(timer);
  }, [view]);

  const known = useMemo(() => new Map(rows.rows.map((row, index) => [rows.from + index, row])), [rows]);
  const choose = (at: number) => {
    const row = rows.gone + at;
    const packet = known.get(at)?.number;
    setActive({ row, packet });
    setFollows(false);
    tell({ do: "detail", row, number: packet });
  };
  const placeOf = ({ row, packet }: { row: number; packet: number | undefined }) => {
    const there = known.get(row - rows.gone)?.number;
    // Where another packet is by now, as for another filter, none is active.
    return packet === undefined || there === undefined || there === packet ? Math.max(-1, row - rows.gone) : -1;
  };

  return (
    <section ref={section} class="watch" aria-label="Watch" hidden={!isShown}>
      <div class="bar">
        <button type="button" onClick={onClose}>Close watch</button>
        <label class="grow">
          Show{" "}
          <input
            type="search"
            value={filter}
            spellcheck={false}
            placeholder="words, proto:dns, addr:10.0.0.1, port:80, len:>1000, dir:in, flags:rst, iface:eth0, !word"
            aria-invalid={filterError !== undefined}
            aria-describedby="show-error"
            onInput={(event) => {
              setFilter(event.currentTarget.value);
              setActive(undefined);
            }}
          />
        </label>
        <span id="show-error" class="error" role="alert">{filterError && readable(filterError)}</span>
        <button type="button" aria-pressed={isPaused} onClick={() => setPaused(!isPaused)}>{isPaused ? "Go on" : "Pause"}</button>
        <button type="button" aria-pressed={follows} onClick={() => setFollows(!follows)}>Follow</button>
        <button type="button" disabled={ended !== undefined} onClick={() => tell({ do: "stop" })}>Stop</button>
        <button type="button" disabled={status.total === 0} onClick={() => tell({ do: "save" })}>Save what is here</button>
        <span class="tabs" role="group" aria-label="View">
          {(["packets", "conversations", "rates"] as const).map((name) => (
            <button key={name} type="button" aria-pressed={view === name} onClick={() => setView(name)}>{name}</button>
          ))}
        </span>
      </div>
      <p class="status">
        {/* Not told anew by screen readers with each packet. */}
        <span class="total" data-total={status.total}>{plural(status.total, "packet")}</span>
        {filter && `, ${status.count.toLocaleString("en")} shown`}
        {status.behind > 0 && `, ${status.behind.toLocaleString("en")} still to be looked at`}
        {status.gone > 0 && `, the first ${status.gone.toLocaleString("en")} are no longer in the window`}
        {status.lost > 0 && <strong class="lost">, {plural(status.lost, "packet")} dropped</strong>}
        {`, ${bytes(status.bytes)}`}
        {!hasBegun && !ended && ", waiting for the service …"}
      </p>
      <div role="status" class="ends">
        {ended && (
          <p class={ended.isRefused ? "error" : "end"}>
            <bdi>{readable(source.name)}</bdi>: {readable(ended.sentence)}
          </p>
        )}
      </div>
      {view === "packets" && (
        <>
          <Rows
            id="packets"
            label="Packets"
            count={status.count}
            height={ROW}
            columns={9}
            keyOf={(at) => rows.gone + at}
            active={active ? placeOf(active) : -1}
            onActive={choose}
            follows={follows && !isPaused}
            isShown={isShown}
            onFollow={setFollows}
            onSeen={(from, to) => tell({ do: "rows", from, to })}
            head={
              <>
                {["time", "target", "interface", "direction", "source", "destination", "protocol", "length", "summary"].map((name) => (
                  <span key={name} role="columnheader" class={name}>{name}</span>
                ))}
              </>
            }
            row={(at) => <PacketCells row={known.get(at)} />}
          />
          {detail && <Details detail={detail} />}
        </>
      )}
      {view === "conversations" && <ConversationTable {...(conversations ?? { rows: [], forgotten: 0 })} />}
      {view === "rates" && (status.seconds.length > 0 ? <Plot seconds={status.seconds} /> : <p>No packet has come yet.</p>)}
    </section>
  );
}

/** An address, behind the name that stands for it. */
function whole(name: string, address: string): string {
  return readable(name === address ? address : `${name} (${address})`);
}

function PacketCells({ row }: { row: Row | undefined }) {
  if (!row) return <span role="gridcell" aria-colspan={9}>…</span>;
  const direction = row.direction === "in" ? "→ in" : row.direction === "out" ? "← out" : "";
  const name = (text: string) => <bdi>{readable(text)}</bdi>;
  const [source, destination] = row.addresses;
  return (
    <>
      <span role="gridcell" class={`time colour ${row.colour}`}>{row.time.toFixed(6)}</span>
      <span role="gridcell" class="target">{name(row.target)}</span>
      <span role="gridcell" class="interface">{name(row.link)}</span>
      <span role="gridcell" class="direction">{direction}</span>
      <span role="gridcell" class="source" title={whole(row.source, source)}>{name(row.source)}</span>
      <span role="gridcell" class="destination" title={whole(row.destination, destination)}>{name(row.destination)}</span>
      <span role="gridcell" class="protocol">{row.protocol}</span>
      <span role="gridcell" class="length">{row.length}</span>
      <span role="gridcell" class="summary">
        {row.lost > 0 && <strong class="lost">{plural(row.lost, "packet")} dropped before this · </strong>}
        {readable(row.summary)}
      </span>
    </>
  );
}

/** Bytes of a line of the dump, and most bytes that are shown of a packet. */
const LINE = 16;
const MOST = 4096;

function Details({ detail }: { detail: Detail }) {
  const [marked, setMarked] = useState<{ from: number; to: number }>();
  const shown = detail.bytes.subarray(0, MOST);
  const lines = Array.from({ length: Math.ceil(shown.length / LINE) }, (_, line) => line * LINE);
  const isMarked = (at: number) => marked !== undefined && at >= marked.from && at < marked.to;
  return (
    <div class="details">
      <div class="layers" tabIndex={0} role="region" aria-label="Layers of the packet">
        <p>
          {detail.time} UTC, <bdi>{readable(detail.link)}</bdi>, {plural(detail.length, "byte")}
          {detail.bytes.length < detail.length && `, of which ${detail.bytes.length} were captured`}
        </p>
        {detail.layers.map((layer, index) => (
          <details key={`${detail.row} ${index}`} open>
            <summary onClick={() => setMarked(layer)}>{layer.name}</summary>
            <ul>
              {layer.fields.map((field, at) => (
                <li key={at}>
                  <button type="button" class="field" onClick={() => setMarked(field)} onFocus={() => setMarked(field)}>
                    {readable(field.name)}: <bdi>{readable(field.value)}</bdi>
                  </button>
                </li>
              ))}
            </ul>
          </details>
        ))}
      </div>
      <div class="bytes" tabIndex={0} role="region" aria-label="Bytes of the packet">
        {lines.map((begin) => {
          const part = [...shown.subarray(begin, begin + LINE)];
          return (
            <div key={begin}>
              <span class="offset">{begin.toString(16).padStart(4, "0")}</span>
              {part.map((byte, at) => (
                <span key={at} class={isMarked(begin + at) ? "byte marked" : "byte"}>{byte.toString(16).padStart(2, "0")}</span>
              ))}
              {Array.from({ length: LINE - part.length }, (_, at) => (
                <span key={part.length + at} class="byte">{"  "}</span>
              ))}
              <span class="text">{part.map((byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : "·")).join("")}</span>
            </div>
          );
        })}
        {detail.bytes.length > MOST && <p>and {plural(detail.bytes.length - MOST, "more byte", "more bytes")}</p>}
      </div>
    </div>
  );
}

function ConversationTable({ rows, forgotten }: { rows: ConversationRow[]; forgotten: number }) {
  const name = (text: string) => <bdi>{readable(text)}</bdi>;
  return (
    <div class="conversations" tabIndex={0} role="region" aria-label="Conversations">
      <table>
        <thead>
          <tr>
            {["protocol", "interface", "from", "to", "packets →", "packets ←", "bytes →", "bytes ←", "seconds", "round trip", "sent again", "resets"].map((head) => (
              <th key={head} scope="col">{head}</th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={row.key}>
              <td>{row.protocol}</td>
              <td>{name(row.link)}</td>
              <td title={whole(row.from.name, row.from.address)}>{name(row.from.name)}</td>
              <td title={whole(row.to.name, row.to.address)}>{name(row.to.name)}</td>
              <td>{row.packets[0].toLocaleString("en")}</td>
              <td>{row.packets[1].toLocaleString("en")}</td>
              <td>{bytes(row.bytes[0])}</td>
              <td>{bytes(row.bytes[1])}</td>
              <td>{row.duration.toFixed(1)}</td>
              <td>{row.roundTrip === undefined ? "" : `${(row.roundTrip * 1000).toFixed(2)} ms`}</td>
              <td>{row.retransmissions || ""}</td>
              <td>{row.resets || ""}</td>
            </tr>
          ))}
        </tbody>
      </table>
      {forgotten > 0 && <p>and {forgotten.toLocaleString("en")} more, which are not shown</p>}
    </div>
  );
}
