/** What the scripts of whole guests share. */

import type { GuestMemory } from "../../src/memory/guest-memory.ts";
import type { GuestDriver } from "./guest-driver.ts";

export const FIRST_WINDOW = 0xc000_1000;
export const WINDOW_BYTES = 0x1000;
export const PAGE_BYTES = 4096;
/** Three pages for each of up to three queues. */
export const RINGS_BYTES = 9 * PAGE_BYTES;

export interface GuestParts {
  readonly memory: GuestMemory;
  /** A driver for the device at `window`, which puts its queues' rings at `rings`. */
  driver(window: number, rings: number): GuestDriver;
  /** Eight free pages. The drive uses the third and fourth. */
  readonly data: number;
  /** {@link RINGS_BYTES} of free memory for the drive's rings, and as much again for those of the others. */
  readonly rings: number;
  idle(): void;
  print(text: string): void;
}

/** Reads the first sector, which is full of the letter d. Throws if it is not. */
export function readDrive({ memory, data }: GuestParts, drive: GuestDriver): void {
  const header = { gpa: data + 2 * PAGE_BYTES, length: 16 };
  const sector = { gpa: data + 3 * PAGE_BYTES, length: 512 };
  const status = { gpa: header.gpa + 16, length: 1 };
  memory.write(header.gpa, new Uint8Array(17));
  memory.write(sector.gpa, new Uint8Array(512));
  memory.writeU8(status.gpa, 0xff);
  drive.submit(0, [header], [sector, status]);
  drive.waitUsed(0);
  const good = memory.slice(sector.gpa, 512).every((byte) => byte === 0x64);
  if (!good || memory.readU8(status.gpa) !== 0) throw new Error("the drive does not answer as it should");
}
