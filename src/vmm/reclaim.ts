/** Gives host memory under guest RAM back to the host. */

import { addressOf, adviseMemory, mapZeros } from "../platform/memory.ts";

/** Memory of this process by its addresses, from `start` to before `end`, whole pages. */
export interface HostRange {
  readonly start: number;
  readonly end: number;
}

export class MemoryReclaim {
  private readonly fromFiles: HostRange[] = [];

  /** `ranges` are private mappings of files, which would show the file again if they were only dropped. */
  addFileRanges(ranges: readonly HostRange[]): void {
    this.fromFiles.push(...ranges);
  }

  /**
   * Takes the memory away under `pages`: whole host pages of guest RAM, which read as zeros afterwards and take memory
   * again when they are touched. Throws `SystemError`.
   */
  discard(pages: Uint8Array): void {
    const start = addressOf(pages);
    const end = start + pages.length;
    const inFile = this.fromFiles.some((range) => start < range.end && range.start < end);
    if (inFile) mapZeros(pages);
    else adviseMemory(pages, "dontNeed");
  }
}
