// Text that others have chosen, and numbers, as people read them.

/** What must not be shown as it is: controls, and signs that turn the direction of text, hide in it, or look like nothing. */
const UNREADABLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\u2800]/gu;

/** A name that anyone may have chosen, with nothing in it that is not seen. */
export function readable(name: string): string {
  return name.replace(UNREADABLE, (sign) => `\\u{${sign.codePointAt(0)!.toString(16)}}`);
}

/** Whether all of a text is seen. */
export function isReadable(text: string): boolean {
  return readable(text) === text;
}

const PREFIXES = ["", "k", "M", "G", "T", "P"];

/** A number with three digits that count. */
export function short(value: number): string {
  if (!Number.isFinite(value)) return "–";
  let at = 0;
  let rest = Math.abs(value);
  while (rest >= 999.5 && at < PREFIXES.length - 1) {
    rest /= 1000;
    at += 1;
  }
  const digits = at === 0 ? (rest < 10 && rest % 1 ? 1 : 0) : rest < 9.995 ? 2 : rest < 99.95 ? 1 : 0;
  return `${value < 0 ? "-" : ""}${rest.toFixed(digits)}${at ? ` ${PREFIXES[at]}` : ""}`;
}

/** A number of bytes. */
export function bytes(value: number): string {
  const number = short(value);
  return /[A-Z]$/i.test(number) ? `${number}B` : `${number} B`;
}

/** A time that has gone by, in its largest unit or two. */
export function age(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  if (whole < 86_400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86_400)} d ${Math.floor((whole % 86_400) / 3600)} h`;
}

export function plural(count: number, one: string, many = `${one}s`): string {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}
