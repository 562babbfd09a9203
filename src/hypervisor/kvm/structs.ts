/** Requests that read or write one structure of a fixed size, kept as KVM's own bytes. */

import { ioctlStruct } from "../../platform/ioctl.ts";

/** `length` bytes that KVM fills. Throws {@link SystemError}. */
export function getStruct(fd: number, request: number, length: number, name: string): Uint8Array {
  const struct = new Uint8Array(length);
  ioctlStruct(fd, request, struct, name);
  return struct;
}

/**
 * Hands `struct` to KVM, which reads `length` bytes. Throws {@link RangeError} if it has another length, as a damaged
 * snapshot's may, or {@link SystemError}.
 */
export function setStruct(
  fd: number,
  request: number,
  struct: Uint8Array,
  length: number,
  name: string,
): void {
  if (struct.length !== length) {
    throw new RangeError(`${name} takes a structure of ${length} bytes, not of ${struct.length}`);
  }
  ioctlStruct(fd, request, struct, name);
}
