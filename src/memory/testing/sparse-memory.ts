/** Guest memory of any size for tests: the host has only the pages that a test touches. */

import { reserveMemory, unmapAt } from "../../platform/memory.ts";
import { type GuestMemoryLayout, MMIO_GAP_START } from "../guest-memory.ts";

const WASM_PAGE = 65_536;
const HUGE_PAGE = 2 ** 21;

export interface SparseMemory {
  readonly layout: GuestMemoryLayout & { readonly high: number };
  /** Takes RAM above the MMIO gap away. Nothing may use it any more. */
  close(): void;
}

/** RAM up to the MMIO gap, and `highBytes` (whole pages) above. */
export function sparseMemory(highBytes: number, base = 0): SparseMemory {
  const pages = Math.ceil((MMIO_GAP_START + base) / WASM_PAGE);
  const { buffer } = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
  if (!(buffer instanceof SharedArrayBuffer)) throw new Error("the memory is not shared");
  const high = reserveMemory(highBytes, HUGE_PAGE);
  return {
    layout: { buffer, base, size: MMIO_GAP_START + highBytes, high },
    close: () => unmapAt(high, highBytes),
  };
}
