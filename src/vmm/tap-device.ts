/** Opens TAP devices for network interfaces. Apart from what uses them, which the main thread need not load. */

import { NET_HEADER_BYTES } from "../devices/virtio/net/link.ts";
import { SystemError } from "../platform/errno.ts";
import { openTap } from "../platform/tap.ts";
import { ConfigError } from "./config-error.ts";

/** Opens the TAP device of a network interface. Throws {@link ConfigError} with Firecracker's words. */
export function openTapDevice(name: string): number {
  try {
    return openTap(name, NET_HEADER_BYTES);
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    const reason =
      error.call === "open"
        ? `Couldn't open /dev/net/tun: ${error.message}`
        : `Error while creating ifreq structure: ${error.message}. Invalid TUN/TAP Backend provided by ${name}. Check our documentation on setting up the network devices.`;
    throw new ConfigError(`Could not create the network device: Open tap device failed: ${reason}`);
  }
}
