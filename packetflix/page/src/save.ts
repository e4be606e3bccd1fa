// A stream into a file: by the browser's access to files, which takes any size, or else as a download from memory.

import type { Target } from "./model";
import { type Wish, fileName, nameOf, pathOf } from "./request";
import { dial } from "./service";

/** Most bytes that wait for a disk. */
const MOST_WAITING = 128 * 1024 * 1024;

/** Most bytes of a file that has to be kept in memory first. */
const MOST_IN_MEMORY = 512 * 1024 * 1024;

interface FilePicker {
  showSaveFilePicker?: (options: object) => Promise<FileSystemFileHandle>;
}

interface Sink {
  write: (bytes: ArrayBuffer) => Promise<void>;
  close: () => Promise<void>;
  isFull: () => boolean;
}

async function open(name: string): Promise<Sink> {
  const picker = (globalThis as FilePicker).showSaveFilePicker;
  if (picker) {
    const types = [{ description: "pcapng", accept: { "application/x-pcapng": [".pcapng"] } }];
    const file = await (await picker.call(globalThis, { suggestedName: name, types })).createWritable();
    return { write: (bytes) => file.write(bytes), close: () => file.close(), isFull: () => false };
  }
  const parts: ArrayBuffer[] = [];
  let size = 0;
  return {
    write: async (bytes) => {
      parts.push(bytes);
      size += bytes.byteLength;
    },
    close: async () => download(new Blob(parts, { type: "application/x-pcapng" }), name),
    isFull: () => size > MOST_IN_MEMORY,
  };
}

export function download(file: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = name;
  link.click();
  // Some browsers begin to read it only after this.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export interface Saving {
  name: string;
  bytes: number;
  /** How it ended, if it has. */
  end?: string;
  isRefused?: boolean;
}

/** Saves a capture; `note` hears how it goes. Gives what asks for its end. */
export async function save(targets: Target[], wish: Wish, note: (saving: Saving) => void): Promise<() => void> {
  const saving: Saving = { name: fileName(nameOf(targets)), bytes: 0 };
  const sink = await open(saving.name);
  const { url, protocols } = dial(pathOf(targets, wish));
  const socket = new WebSocket(url, protocols);
  socket.binaryType = "arraybuffer";
  let written: Promise<void> = Promise.resolve();
  let waiting = 0;
  let refusal: string | undefined;
  let trouble: string | undefined;
  const stop = () => (socket.readyState === WebSocket.OPEN ? socket.send("stop") : socket.close());
  socket.onmessage = ({ data }) => {
    if (typeof data === "string") {
      refusal = String(JSON.parse(data).error);
      return;
    }
    saving.bytes += data.byteLength;
    waiting += data.byteLength;
    written = written
      .then(() => sink.write(data))
      .then(() => {
        waiting -= data.byteLength;
      })
      .catch((error: Error) => {
        trouble ??= `the file cannot be written: ${error.message}`;
        stop();
      });
    if (waiting > MOST_WAITING && !trouble) {
      trouble = "the disk is too slow for this capture";
      stop();
    }
    if (sink.isFull() && !trouble) {
      trouble = "there is no room in memory for more; give it a limit, or take the command";
      stop();
    }
    note({ ...saving });
  };
  socket.onclose = async ({ code, reason }) => {
    await written;
    const isRefused = refusal !== undefined || saving.bytes === 0;
    if (saving.bytes > 0) await sink.close();
    const end = trouble ?? refusal ?? (reason || (code === 1006 ? "the connection broke" : "ended"));
    note({ ...saving, end, isRefused });
  };
  note({ ...saving });
  return stop;
}
