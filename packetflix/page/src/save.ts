// A stream into a file: by the browser's access to files, which takes any size, or else as a download from memory.

import type { Target } from "./model";
import { type Wish, fileName, nameOf, pathOf } from "./request";
import { dial } from "./service";

/** Most bytes that wait for a disk. */
const MOST_WAITING = 128 * 1024 * 1024;

/** Most bytes of a file that has to be kept in memory first. */
const MOST_IN_MEMORY = 512 * 1024 * 1024;

/** How a connection ends that nobody has ended (RFC 6455, section 7.4.1). */
const BROKEN = 1006;

interface FilePicker {
  showSaveFilePicker?: (options: object) => Promise<FileSystemFileHandle>;
}

interface Sink {
  write: (bytes: ArrayBuffer) => Promise<void>;
  close: () => Promise<void>;
  /** Leaves nothing behind of what was never written. */
  abandon: () => Promise<void>;
  isFull: () => boolean;
}

/** Not all browsers can take a file away again. */
type Removable = FileSystemFileHandle & { remove?: () => Promise<void> };

async function open(name: string): Promise<Sink> {
  const picker = (globalThis as FilePicker).showSaveFilePicker;
  if (picker) {
    const types = [{ description: "pcapng", accept: { "application/x-pcapng": [".pcapng"] } }];
    const file: Removable = await picker.call(globalThis, { suggestedName: name, types });
    const stream = await file.createWritable();
    const abandon = async () => {
      await stream.abort();
      // What somebody has had in it is theirs.
      if ((await file.getFile()).size === 0) await file.remove?.();
    };
    return { write: (bytes) => stream.write(bytes), close: () => stream.close(), abandon, isFull: () => false };
  }
  const parts: ArrayBuffer[] = [];
  let size = 0;
  return {
    write: async (bytes) => {
      parts.push(bytes);
      size += bytes.byteLength;
    },
    close: async () => download(new Blob(parts, { type: "application/x-pcapng" }), name),
    abandon: async () => undefined,
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
  hasFailed?: boolean;
}

/** Saves a capture; `note` hears how it goes. Gives what asks for its end; nothing, if it never began. */
export async function save(targets: Target[], wish: Wish, note: (saving: Saving) => void): Promise<(() => void) | undefined> {
  const saving: Saving = { name: fileName(nameOf(targets)), bytes: 0 };
  let sink: Sink;
  try {
    sink = await open(saving.name);
  } catch (error) {
    // Whoever does not say where it is to go does not want it.
    if ((error as Error).name !== "AbortError") note({ ...saving, end: (error as Error).message, hasFailed: true });
    return undefined;
  }
  const { url, protocols } = dial(pathOf(targets, wish));
  const socket = new WebSocket(url, protocols);
  socket.binaryType = "arraybuffer";
  let written: Promise<void> = Promise.resolve();
  let waiting = 0;
  let refusal: string | undefined;
  let trouble: string | undefined;
  const stop = () => (socket.readyState === WebSocket.OPEN ? socket.send("stop") : socket.close());
  const giveUp = (why: string) => {
    trouble ??= why;
    stop();
  };
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
      .catch((error: Error) => giveUp(`the file cannot be written: ${error.message}`));
    if (waiting > MOST_WAITING && !trouble) giveUp("the disk is too slow for this capture");
    if (sink.isFull() && !trouble) giveUp("there is no room in memory for more; give it a limit, or take the command");
    note({ ...saving });
  };
  socket.onclose = async ({ code, reason }) => {
    await written;
    try {
      await (saving.bytes > 0 ? sink.close() : sink.abandon());
    } catch (error) {
      trouble ??= `the file cannot be finished: ${(error as Error).message}`;
    }
    const isBroken = code === BROKEN;
    const end = trouble ?? refusal ?? (reason || (isBroken ? "the connection broke" : "ended"));
    note({ ...saving, end, hasFailed: trouble !== undefined || refusal !== undefined || isBroken || saving.bytes === 0 });
  };
  note({ ...saving });
  return stop;
}
