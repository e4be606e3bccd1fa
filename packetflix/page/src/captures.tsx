// Who captures what, for those who may know, and who may end it.

import { useEffect, useState } from "preact/hooks";
import type { CaptureList, RunningCapture } from "./model";
import { ask, askJson } from "./service";
import { age, bytes, readable, short } from "./text";

const EVERY = 2000;

function targetOf(capture: RunningCapture): string {
  const { found, target } = capture;
  const name = found?.names[0] ?? (found?.name || target.name);
  return name || `network namespace ${target.netns}`;
}

export function Captures({ session }: { session: number }) {
  const [list, setList] = useState<RunningCapture[]>();
  const [error, setError] = useState<string>();
  const look = async () => {
    try {
      setList((await askJson<CaptureList>("captures")).captures);
      setError(undefined);
    } catch (refused) {
      setError((refused as Error).message);
    }
  };
  useEffect(() => {
    void look();
    const timer = setInterval(() => {
      if (!document.hidden) void look();
    }, EVERY);
    return () => clearInterval(timer);
  }, [session]);
  const stop = async (id: number) => {
    try {
      await ask(`captures/${id}`, { method: "DELETE" });
    } catch (refused) {
      setError((refused as Error).message);
    }
    await look();
  };
  return (
    <section class="captures" aria-label="Captures">
      <p class="error" role="alert">{error && readable(error)}</p>
      {list && list.length === 0 && <p role="status">Nobody captures anything.</p>}
      {list && list.length > 0 && (
        <div class="scrolled" tabIndex={0} role="region" aria-label="Captures that run">
          <table>
            <thead>
              <tr>
                {["number", "who", "target", "interfaces", "filter", "for", "packets", "rate", "lost", ""].map((head) => (
                  <th key={head} scope="col">{head || <span class="hidden">stop</span>}</th>
                ))}
              </tr>
            </thead>
            <tbody>
              {list.map((capture) => (
                <tr key={capture.id}>
                  <td>{capture.id}</td>
                  <td><bdi>{readable([capture.client.name, capture.client.address].filter(Boolean).join(" at "))}</bdi></td>
                  <td><bdi>{readable(targetOf(capture))}</bdi></td>
                  <td><bdi>{readable(capture["network-interfaces"]?.join(", ") ?? "all")}</bdi></td>
                  <td><code>{readable(capture.filter ?? "")}</code></td>
                  <td>{age(capture.duration)}</td>
                  <td>{capture.packets.toLocaleString("en")}</td>
                  <td>{short(capture["packets-per-second"])}/s, {bytes(capture["bytes-per-second"])}/s</td>
                  <td>{(capture.dropped.kernel + capture.dropped["slow-client"]).toLocaleString("en")}</td>
                  <td><button type="button" onClick={() => stop(capture.id)}>Stop<span class="hidden"> capture {capture.id}</span></button></td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}
