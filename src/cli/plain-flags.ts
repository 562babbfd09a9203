/**
 * Firecracker's command line without the command line library, which takes longer to load than a microVM to build.
 * Only what is plainly right is understood here; all else, and every message about it, is the library's.
 */

import { ACCELERATORS, type Accelerator } from "../vmm/accel.ts";
import type { FirecrackerFlags } from "./firecracker.ts";
import { FIRECRACKER_FLAGS } from "./flags.ts";

const ACCEL = "--accel";

/** What the arguments say, or undefined if the library has to look at them. */
export function plainFlags(argv: readonly string[]): FirecrackerFlags | undefined {
  if (argv.length === 0) return undefined;
  const values: Record<string, string | boolean> = { api: true, accel: "auto" };
  for (const { name, default: value } of FIRECRACKER_FLAGS) {
    if (value !== undefined) values[attribute(name)] = value;
  }
  for (let i = 0; i < argv.length; i++) {
    const argument = argv[i]!;
    const flag = FIRECRACKER_FLAGS.find(({ name }) => argument === `--${name}`);
    if (argument !== ACCEL && (flag === undefined || flag.support === "refused")) return undefined;
    if (flag?.argument === "") {
      if (flag.name.startsWith("no-")) values[attribute(flag.name.slice("no-".length))] = false;
      else values[attribute(flag.name)] = true;
      continue;
    }
    const value = argv[++i];
    if (value === undefined || value.startsWith("-")) return undefined;
    if (flag === undefined && !isAccelerator(value)) return undefined;
    values[attribute(argument.slice("--".length))] = value;
  }
  return isComplete(values) ? values : undefined;
}

/** `api-sock` as the library names it: `apiSock`. */
function attribute(name: string): string {
  return name.replaceAll(/-./g, (part) => part[1]!.toUpperCase());
}

function isAccelerator(value: string): value is Accelerator {
  return ACCELERATORS.some((name) => name === value);
}

function isComplete(
  values: Record<string, string | boolean>,
): values is Record<string, string | boolean> & FirecrackerFlags {
  return typeof values.api === "boolean" && typeof values.id === "string" && typeof values.accel === "string";
}
