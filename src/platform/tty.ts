/** Terminals: is it one, and keys straight through to the guest. */

import { check } from "./errno.ts";
import { libc } from "./libc.ts";

/** struct termios of x86-64 glibc. */
const TERMIOS_BYTES = 60;
const C_LFLAG = 12;
const ISIG = 0o1;
const ICANON = 0o2;
const ECHO = 0o10;
const TCSANOW = 0;

export function isTerminal(fd: number): boolean {
  return libc().isatty(fd) === 1;
}

/**
 * Keys go to the reader one by one, unechoed, and Ctrl-C is a byte (no ICANON, ECHO, ISIG: what Firecracker
 * does). Returns a function that puts the terminal back as it was; call it before the process exits.
 * Throws {@link SystemError} if `fd` is not a terminal.
 */
export function setRawMode(fd: number): () => void {
  const saved = new Uint8Array(TERMIOS_BYTES);
  check(libc().tcgetattr(fd, saved), "tcgetattr");
  const raw = saved.slice();
  const flags = new DataView(raw.buffer);
  flags.setUint32(C_LFLAG, flags.getUint32(C_LFLAG, true) & ~(ICANON | ECHO | ISIG), true);
  check(libc().tcsetattr(fd, TCSANOW, raw), "tcsetattr");
  return () => {
    check(libc().tcsetattr(fd, TCSANOW, saved), "tcsetattr");
  };
}
