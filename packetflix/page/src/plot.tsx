// Packets and bytes of each second.

import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { short } from "./text";
import type { Second } from "./worker/window";

const HEIGHT = 260;

export function Plot({ seconds }: { seconds: Second[] }) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | undefined>(undefined);
  useEffect(() => {
    const element = box.current!;
    const style = getComputedStyle(element);
    const [ink, one, other] = ["--ink", "--main", "--second"].map((name) => style.getPropertyValue(name).trim());
    const axis = { stroke: ink!, grid: { stroke: "#8884" }, ticks: { stroke: "#8884" } };
    plot.current = new uPlot(
      {
        width: element.clientWidth,
        height: HEIGHT,
        scales: { packets: { range: (_, __, most) => [0, Math.max(1, most)] }, bytes: { range: (_, __, most) => [0, Math.max(1, most)] } },
        axes: [
          axis,
          { ...axis, scale: "packets", values: (_, values) => values.map((value) => `${short(value)}/s`), size: 70 },
          { ...axis, scale: "bytes", side: 1, grid: { show: false }, values: (_, values) => values.map((value) => `${short(value)}B/s`), size: 80 },
        ],
        series: [{}, { label: "packets/s", scale: "packets", stroke: one! }, { label: "bytes/s", scale: "bytes", stroke: other! }],
      },
      [[], [], []],
      element,
    );
    const observer = new ResizeObserver(() => plot.current?.setSize({ width: element.clientWidth, height: HEIGHT }));
    observer.observe(element);
    return () => {
      observer.disconnect();
      plot.current?.destroy();
    };
  }, []);
  useEffect(() => {
    const column = (of: (second: Second) => number) => seconds.map(of);
    plot.current?.setData([column((one) => one.second), column((one) => one.packets), column((one) => one.bytes)]);
  }, [seconds]);
  const last = seconds.at(-2);
  return (
    <figure class="plot">
      <div ref={box} />
      <figcaption>
        Packets and bytes of each second{last && `; in the last whole one ${short(last.packets)} packets and ${short(last.bytes)}B`}
      </figcaption>
    </figure>
  );
}
