/** Metadata from a file (`--metadata`). */

import type { MmdsConfig } from "../mmds/mmds.ts";
import { MmdsError, MmdsStore } from "../mmds/store.ts";
import { ConfigError } from "../vmm/config-error.ts";
import { mmdsSettings } from "../vmm/mmds-config.ts";
import { parseJson } from "../vmm/schema/validate.ts";
import { DEFAULT_MAX_PAYLOAD } from "./flags.ts";
import { readText } from "./text-file.ts";

/** Puts the JSON in the file at `path` into `mmds`. Throws {@link ConfigError}. */
export function putMetadata(mmds: MmdsStore, path: string): void {
  const text = readText("Unable to open or read from the mmds content file", path);
  try {
    mmds.put(parseJson(text));
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof MmdsError)) throw error;
    throw new ConfigError(`MMDS error: ${path}: ${error.message}`);
  }
}

/** The metadata of `sparkler run`. Throws {@link ConfigError}. */
export function runMetadata(path: string, ifaceId: string): MmdsConfig {
  const mmds = new MmdsStore(DEFAULT_MAX_PAYLOAD);
  putMetadata(mmds, path);
  const settings = mmdsSettings({ version: "V2", network_interfaces: [ifaceId] }, [ifaceId]);
  return { ...settings, instanceId: "run", data: mmds.get() };
}
