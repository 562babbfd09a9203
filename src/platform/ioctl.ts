/** ioctl(2): requests whose argument is a number or a structure. */

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
