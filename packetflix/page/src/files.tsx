// Captures that are being saved, whatever else is looked at meanwhile.

import { useRef, useState } from "preact/hooks";
import type { Target } from "./model";
import type { Wish } from "./request";
import { type Saving, save } from "./save";
import { bytes, readable } from "./text";

export interface SavedFile extends Saving {
  number: number;
}

export interface Files {
  all: SavedFile[];
  isRunning: boolean;
  begin: (targets: Target[], wish: Wish) => void;
  /** Asks for the end of a file's capture. */
  stop: (number: number) => void;
  /** Has a file that is finished no longer told of. */
  forget: (number: number) => void;
  /** Finishes all, and tells of none. */
  leave: () => void;
}

export function useFiles(): Files {
  const [all, setAll] = useState<SavedFile[]>([]);
  const stops = useRef(new Map<number, () => void>());
  const next = useRef(0);
  const stop = (number: number) => stops.current.get(number)?.();
  const begin = async (targets: Target[], wish: Wish) => {
    const number = next.current++;
    const note = (saving: Saving) => {
      const file = { ...saving, number };
      setAll((all) => (all.some((one) => one.number === number) ? all.map((one) => (one.number === number ? file : one)) : [...all, file]));
    };
    const end = await save(targets, wish, note);
    if (end) stops.current.set(number, end);
  };
  return {
    all,
    isRunning: all.some((file) => file.end === undefined),
    begin: (targets, wish) => void begin(targets, wish),
    stop,
    forget: (number) => {
      stops.current.delete(number);
      setAll((all) => all.filter((file) => file.number !== number));
    },
    leave: () => {
      for (const end of stops.current.values()) end();
      stops.current.clear();
      setAll([]);
    },
  };
}

export function FileList({ files }: { files: Files }) {
  if (files.all.length === 0) return null;
  return (
    <ul class="files" aria-label="Files">
      {files.all.map((file) => (
        <li key={file.number} class={file.hasFailed ? "error saving" : "saving"}>
          <bdi>{readable(file.name)}</bdi>: {bytes(file.bytes)}
          {/* Screen readers are told of the end, not of each message. */}
          <span role="status">{file.end !== undefined && `, ${readable(file.end)}`}</span>{" "}
          {file.end === undefined ? (
            <button type="button" aria-label={`Stop and finish the file ${file.name}`} onClick={() => files.stop(file.number)}>Stop and finish the file</button>
          ) : (
            <button type="button" aria-label={`Dismiss ${file.name}`} onClick={() => files.forget(file.number)}>Dismiss</button>
          )}
        </li>
      ))}
    </ul>
  );
}
