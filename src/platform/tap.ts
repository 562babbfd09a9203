/** TAP devices: network interfaces of the host whose other end is a descriptor (linux/if_tun.h). */

import { SystemError } from "./errno.ts";
import { ERRNO } from "./errno-numbers.ts";
import { closeFile, openFile } from "./files.ts";
import { ioctlStruct, ioctlValue } from "./ioctl.ts";

const TUNSETIFF = 0x4004_54ca;
const TUNSETOFFLOAD = 0x4004_54d0;
const TUNSETVNETHDRSZ = 0x4004_54d8;

const IFF_TAP = 0x0002;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;

/** Flags of {@link setTapOffload}: what the kernel may hand over unfinished. */
export const TUN_F_CSUM = 1;
export const TUN_F_TSO4 = 2;
export const TUN_F_TSO6 = 4;
export const TUN_F_UFO = 16;

/** struct ifreq: name[16], then a union. */
const IFREQ_BYTES = 40;
const IFREQ_FLAGS = 16;
/** Longest name of an interface, in bytes. */
const MAX_NAME = 15;

/**
 * Opens the TAP device `name`, which exists already or is made for as long as it is open, for frames with
 * `headerBytes` of struct virtio_net_hdr in front. Non-blocking. Throws {@link SystemError}.
 */
export function openTap(name: string, headerBytes: number): number {
  const encoded = new TextEncoder().encode(name);
  if (encoded.length === 0 || encoded.length > MAX_NAME || encoded.includes(0)) {
    throw new SystemError("ioctl(TUNSETIFF)", ERRNO.EINVAL);
  }
  const fd = openFile("/dev/net/tun", { write: true, nonblock: true });
  try {
    const request = new Uint8Array(IFREQ_BYTES);
    request.set(encoded);
    new DataView(request.buffer).setUint16(IFREQ_FLAGS, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, true);
    ioctlStruct(fd, TUNSETIFF, request, "TUNSETIFF");
    const size = new Uint8Array(new Int32Array([headerBytes]).buffer);
    ioctlStruct(fd, TUNSETVNETHDRSZ, size, "TUNSETVNETHDRSZ");
    return fd;
  } catch (error) {
    closeFile(fd);
    throw error;
  }
}

/** Sets which of TUN_F_* may come in received frames. Throws {@link SystemError} EINVAL if the kernel lacks one. */
export function setTapOffload(fd: number, flags: number): void {
  ioctlValue(fd, TUNSETOFFLOAD, flags, "TUNSETOFFLOAD");
}
