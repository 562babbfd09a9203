/** Figures: medians, ratios, tables, and what the kernel says about a process. */

import { readFileSync } from "node:fs";

/** @throws RangeError without values. */
export function median(values: readonly number[]): number {
  if (values.length === 0) throw new RangeError("the median of nothing");
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Geometric mean of positive values. @throws RangeError without values. */
export function geometricMean(values: readonly number[]): number {
  if (values.length === 0) throw new RangeError("the mean of nothing");
  return Math.exp(values.reduce((sum, value) => sum + Math.log(value), 0) / values.length);
}

/** A Markdown table, its columns padded; all but the first are aligned right. */
export function markdownTable(rows: readonly (readonly string[])[]): string {
  const widths = rows[0]!.map((_, column) => Math.max(3, ...rows.map((row) => row[column]!.length)));
  const line = (row: readonly string[]) =>
    `| ${row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join(" | ")} |`;
  const rule = `|${widths.map((width, i) => (i === 0 ? "-".repeat(width + 2) : `${"-".repeat(width + 1)}:`)).join("|")}|`;
  return [line(rows[0]!), rule, ...rows.slice(1).map(line)].join("\n");
}

/** Processor time that a process and its threads have used, ms (proc(5), /proc/PID/stat, utime and stime). */
export function cpuTime(stat: string): number {
  const TICK_MS = 10;
  // The name, in parentheses, may hold spaces.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * TICK_MS;
}

export interface MemoryUse {
  /** Most memory that the process had at once, KiB (VmHWM). */
  peak: number;
  /** Resident now, KiB: pages of the guest's RAM, and everything else. */
  guestRam: number;
  monitor: number;
  /** What of `monitor` is the process's alone: not pages of files, which processes share. */
  monitorPrivate: number;
}

/**
 * Splits resident memory by /proc/PID/smaps. The guest's RAM is what of at least `ramKib` lies together, writable and
 * not executable, with the most resident pages. It may be several mappings: a kernel's file is mapped into it.
 */
export function memoryUse(status: string, smaps: string, ramKib: number): MemoryUse {
  let guest = { rss: 0, anonymous: 0 };
  const total = { rss: 0, anonymous: 0 };
  let together = { end: "", size: 0, rss: 0, anonymous: 0 };
  for (const mapping of smaps.split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m)) {
    const resident = { rss: kib(mapping, "Rss"), anonymous: kib(mapping, "Anonymous") };
    total.rss += resident.rss;
    total.anonymous += resident.anonymous;
    const [, start, end] = /^([0-9a-f]+)-([0-9a-f]+) rw-/.exec(mapping) ?? [];
    if (end === undefined) continue;
    if (start !== together.end) together = { end, size: 0, rss: 0, anonymous: 0 };
    together = {
      end,
      size: together.size + kib(mapping, "Size"),
      rss: together.rss + resident.rss,
      anonymous: together.anonymous + resident.anonymous,
    };
    const mayBeRam = together.size >= ramKib && together.size < 2 * ramKib;
    if (mayBeRam && together.rss > guest.rss) guest = together;
  }
  return {
    peak: kib(status, "VmHWM"),
    guestRam: guest.rss,
    monitor: total.rss - guest.rss,
    monitorPrivate: total.anonymous - guest.anonymous,
  };
}

function kib(text: string, name: string): number {
  return Number(new RegExp(`^${name}:\\s*(\\d+) kB`, "m").exec(text)?.[1] ?? 0);
}

/** Milliseconds as text, in seconds where that reads better. */
export function duration(ms: number): string {
  return ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
}

/** A ratio as text. */
export function ratioText(ratio: number): string {
  return `${ratio.toFixed(2)}x`;
}

export function readProc(pid: number, file: "stat" | "status" | "smaps"): string {
  return readFileSync(`/proc/${pid}/${file}`, "latin1");
}
