/** Feature flags of the host's processor, by the names that Linux gives them. */

import { closeFile, openFile, readSome } from "./files.ts";

const CHUNK = 4096;

/** Flags of the first processor in /proc/cpuinfo. Throws {@link SystemError} if there is no /proc. */
export function cpuFlags(): ReadonlySet<string> {
  const fd = openFile("/proc/cpuinfo");
  try {
    // Only as far as needed: on a large host the whole file takes long to make.
    let text = "";
    const chunk = new Uint8Array(CHUNK);
    for (;;) {
      const flags = /^flags\s*:(.*)\n/m.exec(text)?.[1];
      if (flags !== undefined) return new Set(flags.split(" "));
      const count = readSome(fd, chunk) ?? 0;
      if (count === 0) return new Set();
      text += new TextDecoder("latin1").decode(chunk.subarray(0, count));
    }
  } finally {
    closeFile(fd);
  }
}

/** True if the processor has hardware virtualization: Intel VT-x or AMD-V. */
export function hasVirtualization(flags: ReadonlySet<string>): boolean {
  return flags.has("vmx") || flags.has("svm");
}
