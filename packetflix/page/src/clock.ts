// The service's clock: that of this computer may be another.

/** From which difference on it is told, in milliseconds: what is less may be the time that an answer took. */
const TOLD = 60_000;

/** What time it was for the service, and when that was by a clock that nobody sets. */
let known: { time: number; at: number } | undefined;

/** Takes in what an answer says of the time (RFC 9110, section 6.6.1). */
export function noteDate(date: string | null): void {
  const time = Date.parse(date ?? "");
  if (!Number.isNaN(time)) known = { time, at: performance.now() };
}

/** What time it is for the service; or for this computer, as long as the service has said nothing. */
export function now(): Date {
  return new Date(known ? known.time + performance.now() - known.at : Date.now());
}

/** How many seconds this computer's clock is ahead of the service's, where that is worth a word. */
export function ahead(): number | undefined {
  const difference = Date.now() - now().getTime();
  return Math.abs(difference) < TOLD ? undefined : difference / 1000;
}
