/** ioctl(2): requests whose argument is a number, a structure, or a structure that points to memory. */

import { ptr } from "bun:ffi";
import { check, lastErrno } from "./errno.ts";
import { libc } from "./libc.ts";
import { libcKvm } from "./libc-kvm.ts";

/** A request with a number (0 if it takes none). Returns its result; `name` is for {@link SystemError}. */
export function ioctlValue(fd: number, request: number, value: number, name: string): number {
  return check(libcKvm().ioctl(fd, request, value), `ioctl(${name})`);
}

/** Like {@link ioctlValue} for a hot path: an error comes back as a negative errno. */
export function tryIoctlValue(fd: number, request: number, value: number): number {
  const result = libcKvm().ioctl(fd, request, value);
  return result < 0 ? -lastErrno() : result;
}

/** A request with a structure, which the kernel reads or fills. Throws {@link SystemError}. */
export function ioctlStruct(fd: number, request: number, struct: Uint8Array, name: string): number {
  return check(libc().ioctl(fd, request, struct), `ioctl(${name})`);
}

/**
 * A request with a structure that has the address of `target` at `offset` (bytes). The kernel may keep the
 * address: `target` must stay alive for as long as it does. Throws {@link SystemError}.
 */
export function ioctlPointer(
  fd: number,
  request: number,
  struct: Uint8Array,
  offset: number,
  target: Uint8Array,
  name: string,
): number {
  const view = new DataView(struct.buffer, struct.byteOffset, struct.length);
  view.setBigUint64(offset, BigInt(ptr(target)), true);
  return ioctlStruct(fd, request, struct, name);
}
