// How the service is asked, from wherever it has served this page.

import { noteDate } from "./clock";

/** Where the service is: what lies above the folder of this script. */
export const base = new URL("..", (document.currentScript as HTMLScriptElement).src);

const TOKEN = "packetflix-token";

/** The token of this session; it is in no URL, and gone with the tab. */
let token: string | null = sessionStorage.getItem(TOKEN);

export function hasToken(): boolean {
  return token !== null;
}

/** Most characters of a token that the service takes. */
const MOST_TOKEN = 16 * 1024;

/** Takes a token; or gives the sentence on why it can be none. */
export function signIn(given: string): string | undefined {
  const found = given.trim();
  // What can be sent as one (RFC 6750, section 2.1).
  if (!/^[A-Za-z0-9._~+/-]+=*$/.test(found)) return "A token has only characters of A-Z a-z 0-9 - . _ ~ + / =";
  if (found.length > MOST_TOKEN) return `A token has ${MOST_TOKEN.toLocaleString("en")} characters at most`;
  token = found;
  sessionStorage.setItem(TOKEN, token);
  return undefined;
}

export function signOut(): void {
  token = null;
  sessionStorage.removeItem(TOKEN);
}

/** An answer that says why there is no better one. */
export class Refusal extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    sentence: string,
  ) {
    super(sentence);
  }
}

/** What is said where nobody answers. */
export class Unreachable extends Error {}

function at(path: string): URL {
  return new URL(path, base);
}

/** Answers to requests that are too long to be read (RFC 9110, section 15.5.15; RFC 6585, section 5). */
const TOO_LONG = [414, 431];

/** Asks for what is at a path, with the token if there is one. */
export async function ask(path: string, options: RequestInit = {}): Promise<Response> {
  const headers = new Headers(options.headers);
  if (token !== null) headers.set("Authorization", `Bearer ${token}`);
  let response: Response;
  try {
    response = await fetch(at(path), { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Unreachable("the service does not answer");
  }
  noteDate(response.headers.get("Date"));
  if (response.ok) return response;
  const text = await response.text();
  let said: { error?: unknown; code?: unknown } = {};
  try {
    said = JSON.parse(text);
  } catch {
    // Not ours: a proxy's, say.
  }
  const plain = TOO_LONG.includes(response.status) ? "this is more than the service reads of a request" : `the service answers ${response.status}`;
  const sentence = typeof said.error === "string" ? said.error : plain;
  throw new Refusal(response.status, typeof said.code === "string" ? said.code : "", sentence);
}

export async function askJson<T>(path: string, options?: RequestInit): Promise<T> {
  return (await ask(path, options)).json();
}

/** The events of a stream (HTML, section 9.2.6), for as long as it goes on. EventSource can send no token. */
export async function* events(path: string, signal: AbortSignal): AsyncGenerator<{ kind: string; data: string }> {
  const response = await ask(path, { signal });
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop() ?? "";
    for (const block of blocks) {
      let kind = "message";
      const data: string[] = [];
      for (const line of block.split("\n")) {
        if (line.startsWith("event: ")) kind = line.slice(7);
        if (line.startsWith("data: ")) data.push(line.slice(6));
      }
      if (data.length) yield { kind, data: data.join("\n") };
    }
  }
}

/** How a WebSocket is opened: the token goes as a subprotocol, since no page can set a header there. */
export interface Dial {
  url: string;
  protocols: string[];
}

export function dial(path: string): Dial {
  const url = at(path);
  url.protocol = url.protocol.replace("http", "ws");
  // The second has the service say why there is no capture: a browser shows no page the answer to a handshake.
  const protocols = ["packetflix.v1", "refusals.packetflix.v1"];
  if (token !== null) protocols.push(`bearer.${base64url(token)}`);
  return { url: url.href, protocols };
}

function base64url(text: string): string {
  const bytes = Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte));
  return btoa(bytes.join("")).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
