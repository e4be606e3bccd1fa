// Packets and bytes of each second.

import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { bytes, short } from "./text";
import type { Second } from "./worker/window";

const HEIGHT = 260;

/** Seconds that are shown at least. */
const SHORTEST = 30;

/** Of the day, as the details of a packet have it: not where this computer is. */
function timeOfDay(second: number): string {
  return new Date(second * 1000).toISOString().slice(11, 19);
}

/** From the first second to the last; what uPlot makes of one alone is a day. */
function rangeOf({ data: [seconds] }: uPlot): [number, number] {
  const first = seconds[0] ?? 0;
  return [first, Math.max(seconds.at(-1) ?? 0, first + SHORTEST)];
}

function columns(seconds: Second[]): uPlot.AlignedData {
  const column = (of: (second: Second) => number) => seconds.map(of);
  return [column((one) => one.second), column((one) => one.packets), column((one) => one.bytes)];
}

/** What gives a colour of the page, as it is at that moment: a canvas knows none by its name. */
function colourOf(element: HTMLElement, name: string): () => string {
  return () => {
    element.style.color = `var(${name})`;
    const { color } = getComputedStyle(element);
    element.style.color = "";
    return color;
  };
}

/** Of at least one second. */
export function Plot({ seconds }: { seconds: Second[] }) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | undefined>(undefined);
  useEffect(() => {
    const element = box.current!;
    // Asked for with each drawing, since they may be others by then.
    const [ink, one, other] = ["--ink", "--main", "--second"].map((name) => colourOf(element, name));
    const axis = { stroke: ink!, grid: { stroke: "#8884" }, ticks: { stroke: "#8884" } };
    plot.current = new uPlot(
      {
        width: element.clientWidth,
        height: HEIGHT,
        scales: { x: { range: rangeOf }, packets: { range: (_, __, most) => [0, Math.max(1, most)] }, bytes: { range: (_, __, most) => [0, Math.max(1, most)] } },
        axes: [
          { ...axis, values: (_, seconds) => seconds.map(timeOfDay) },
          { ...axis, scale: "packets", values: (_, values) => values.map((value) => `${short(value)}/s`), size: 70 },
          { ...axis, scale: "bytes", side: 1, grid: { show: false }, values: (_, values) => values.map((value) => `${bytes(value)}/s`), size: 80 },
        ],
        series: [{ label: "UTC", value: (_, second) => (second === null ? "–" : timeOfDay(second)) }, { label: "packets/s", scale: "packets", stroke: one! }, { label: "bytes/s", scale: "bytes", stroke: other! }],
      },
      columns(seconds),
      element,
    );
    const observer = new ResizeObserver(() => plot.current?.setSize({ width: element.clientWidth, height: HEIGHT }));
    observer.observe(element);
    return () => {
      observer.disconnect();
      plot.current?.destroy();
    };
  }, []);
  useEffect(() => plot.current?.setData(columns(seconds)), [seconds]);
  const last = seconds.at(-2);
  return (
    <figure class="plot">
      <div ref={box} />
      <figcaption>
        Packets and bytes of each second{last && `; in the last whole one, ${timeOfDay(last.second)} UTC, ${short(last.packets)} packets and ${bytes(last.bytes)}`}
      </figcaption>
    </figure>
  );
}
