/** A monitor's share of memory, by /proc/PID/smaps. */

interface Area {
  readonly start: number;
  readonly end: number;
  readonly name: string;
  readonly pss: number;
}

const HEADER = /^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)$/m;

/**
 * Proportional memory in KiB without the guest's RAM of `ramMib`: the largest run of neighbouring mappings without a
 * name, or of a laid-out kernel, that has room for it.
 */
export function monitorPss(smaps: string, ramMib: number): number {
  const areas = parse(smaps);
  const total = areas.reduce((sum, { pss }) => sum + pss, 0);
  return total - guestAreas(areas, ramMib * 2 ** 20).reduce((sum, { pss }) => sum + pss, 0);
}

function parse(smaps: string): Area[] {
  return smaps.split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m).flatMap((text) => {
    const header = HEADER.exec(text);
    if (header === null) return [];
    const pss = Number(/^Pss:\s*(\d+) kB/m.exec(text)?.[1] ?? 0);
    return { start: Number(`0x${header[1]}`), end: Number(`0x${header[2]}`), name: header[3]!, pss };
  });
}

function guestAreas(areas: readonly Area[], ramBytes: number): Area[] {
  const runs: Area[][] = [];
  for (const area of areas) {
    if (area.name !== "" && !area.name.includes("/images/")) continue;
    const run = runs.at(-1);
    if (run?.at(-1)?.end === area.start) run.push(area);
    else runs.push([area]);
  }
  const withKernel = runs.filter((run) => run.some(({ name }) => name !== ""));
  const [largest] = (withKernel.length > 0 ? withKernel : runs).filter(
    (run) => run.at(-1)!.end - run[0]!.start >= ramBytes,
  );
  return largest ?? [];
}
