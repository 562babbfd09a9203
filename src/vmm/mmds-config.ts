/** How guests get the metadata, as the API and the configuration file set it. */

import type { MmdsConfig as MmdsPlan } from "../mmds/mmds.ts";
import { ConfigError } from "./config-error.ts";
import type { MmdsConfig } from "./schema/resources.ts";

const DEFAULT_ADDRESS = "169.254.169.254";

export type MmdsSettings = Omit<MmdsPlan, "instanceId" | "data">;

/** `interfaces`: ids of those that there are. Throws {@link ConfigError} in Firecracker's words. */
export function mmdsSettings(config: MmdsConfig, interfaces: readonly string[]): MmdsSettings {
  const { version = "V1", ipv4_address = DEFAULT_ADDRESS, imds_compat = false, network_interfaces } = config;
  if (!isLinkLocal(ipv4_address)) throw new ConfigError("The MMDS IPv4 address is not link local.");
  if (network_interfaces.length === 0) {
    throw new ConfigError("The list of network interface IDs that allow forwarding MMDS requests is empty.");
  }
  if (!network_interfaces.every((id) => interfaces.includes(id))) {
    throw new ConfigError(
      "The list of network interface IDs provided contains at least one ID that does not correspond to any existing network interface.",
    );
  }
  return {
    version,
    networkInterfaces: network_interfaces,
    ipv4Address: ipv4_address,
    imdsCompat: imds_compat,
  };
}

/** True for the link-local addresses that hosts may use (RFC 3927, 2.1). */
function isLinkLocal(address: string): boolean {
  const [a, b, c] = address.split(".").map(Number);
  return a === 169 && b === 254 && c !== 0 && c !== 255;
}

/** As `GET /vm/config` shows them. */
export function mmdsJson(settings: MmdsSettings): Record<string, unknown> {
  return {
    version: settings.version,
    network_interfaces: settings.networkInterfaces,
    ipv4_address: settings.ipv4Address,
    imds_compat: settings.imdsCompat,
  };
}
