// A list of any length, of which those rows are drawn that are seen.

import type { ComponentChildren, VNode } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

interface Props {
  count: number;
  /** Height of each, in pixels. */
  height: number;
  label: string;
  /** The names of the columns. */
  head: ComponentChildren;
  columns: number;
  row: (at: number, isActive: boolean) => VNode;
  /** What the row at a place shows, wherever that is later: whoever presses there means that, and not what has come in its place. */
  keyOf: (at: number) => string | number;
  /** Less than nothing where there is none. */
  active: number;
  /** Where it was, if it is gone. */
  was?: number;
  onActive: (at: number) => void;
  /** Enter or a double click; and space. */
  onOpen?: (at: number) => void;
  onToggle?: (at: number) => void;
  /** Whether a row is chosen, where rows can be; nothing for one that cannot. */
  isChosen?: (at: number) => boolean | undefined;
  /** Whether the last row is to be seen, until somebody goes elsewhere. */
  follows?: boolean;
  onFollow?: (follows: boolean) => void;
  /** What is not shown has no place in it: it is found again where it is. */
  isShown?: boolean;
  /** Is told which rows are seen. */
  onSeen?: (from: number, to: number) => void;
  id: string;
}

/** Rows that are drawn beyond those that are seen. */
const MARGIN = 6;

/** Browsers have a highest element: beyond that, the place in it stands for the place among the rows. */
const HIGHEST = 8_000_000;

export function Rows(props: Props) {
  const { count, height, label, head, columns, row, keyOf, active, onActive, follows, id } = props;
  const box = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const [seen, setSeen] = useState(20);
  const whole = count * height;
  const drawn = Math.min(whole, HIGHEST);
  const view = seen * height;
  // From a place in the element to one among all rows, and back.
  const scale = whole > view && drawn > view ? (whole - view) / (drawn - view) : 1;
  const place = top * scale;
  const first = Math.max(0, Math.min(count - 1, Math.floor(place / height)) - MARGIN);
  const last = Math.min(count, Math.ceil(place / height) + seen + MARGIN);

  const reveal = (at: number) => {
    const element = box.current;
    if (!element) return;
    // Where the element is to be moved at most, and at least; the names of the columns stand above.
    const begin = (at * height) / scale;
    const end = ((at + 2) * height - element.clientHeight) / scale;
    if (begin < element.scrollTop) element.scrollTop = Math.floor(begin);
    else if (end > element.scrollTop) element.scrollTop = Math.ceil(end);
  };
  /** As they were drawn last. */
  const latest = useRef({ active, seen, scale, reveal });
  latest.current = { active, seen, scale, reveal };

  useEffect(() => {
    const element = box.current!;
    const measure = () => {
      const { active, seen, scale, reveal } = latest.current;
      const from = active * height - element.scrollTop * scale;
      setSeen(Math.max(1, Math.ceil(element.clientHeight / height)));
      // What somebody looks at stays in sight where there is less room, as for the details of a packet.
      if (active >= 0 && from >= 0 && from <= seen * height) reveal(active);
    };
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    measure();
    return () => observer.disconnect();
  }, [height]);
  useLayoutEffect(() => {
    if (follows) box.current!.scrollTop = drawn;
  }, [follows, count, drawn, props.isShown]);
  useLayoutEffect(() => {
    // Where it was not shown, it has lost its place.
    if (props.isShown !== false && !follows && active >= 0) reveal(active);
  }, [props.isShown]);
  useEffect(() => props.onSeen?.(first, last), [first, last]);

  const go = (to: number) => {
    const at = Math.max(0, Math.min(count - 1, to));
    onActive(at);
    if (follows && at < count - 1) props.onFollow?.(false);
    reveal(at);
  };
  const onKey = (event: KeyboardEvent) => {
    const page = Math.max(1, seen - 2);
    // What came after one that is gone is in its place.
    const [before, after] = active < 0 && props.was !== undefined ? [props.was, props.was] : [active, active + 1];
    const steps: Record<string, number> = {
      ArrowDown: after,
      ArrowUp: before - 1,
      PageDown: after - 1 + page,
      PageUp: before - page,
      Home: 0,
      End: count - 1,
    };
    const to = steps[event.key];
    if (to !== undefined) go(to);
    else if (event.key === "Enter" && props.onOpen && active >= 0) props.onOpen(active);
    else if (event.key === " " && props.onToggle && active >= 0) props.onToggle(active);
    else return;
    event.preventDefault();
  };
  const onScroll = () => {
    const element = box.current!;
    setTop(element.scrollTop);
    const isAtEnd = element.scrollTop + element.clientHeight >= element.scrollHeight - height;
    if (follows !== undefined && isAtEnd !== follows && count * height > element.clientHeight) props.onFollow?.(isAtEnd);
  };
  const rows = [];
  for (let at = first; at < last; at += 1) {
    rows.push(
      <div
        key={keyOf(at)}
        id={`${id}-${at}`}
        role="row"
        aria-rowindex={at + 2}
        aria-selected={props.isChosen?.(at)}
        class={at === active ? "row active" : "row"}
        style={{ top: `${at * height - place + top}px`, height: `${height}px` }}
        onMouseDown={() => onActive(at)}
        onClick={() => onActive(at)}
        onDblClick={() => props.onOpen?.(at)}
      >
        {row(at, at === active)}
      </div>,
    );
  }
  const isShown = active >= first && active < last;
  return (
    <div
      ref={box}
      class={`rows ${id}`}
      role="grid"
      aria-label={label}
      aria-rowcount={count + 1}
      aria-colcount={columns}
      aria-multiselectable={props.isChosen && true}
      tabIndex={0}
      {...(isShown ? { "aria-activedescendant": `${id}-${active}` } : {})}
      onKeyDown={onKey}
      onScroll={onScroll}
    >
      <div class="head" role="row" aria-rowindex={1} style={{ height: `${height}px` }}>
        {head}
      </div>
      <div class="all" role="presentation" style={{ height: `${drawn}px` }}>
        {rows}
      </div>
    </div>
  );
}
