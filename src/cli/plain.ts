/** Firecracker's command as a process of its own. */

import type { SpareVcpu } from "../vmm/spare-vcpu.ts";
import { explain } from "./exit.ts";
import { type FirecrackerFlags, firecrackerCommand } from "./firecracker.ts";

/** Runs the command and returns the exit code. Errors are told on stderr. */
export async function runPlain(flags: FirecrackerFlags, vcpuThread?: SpareVcpu): Promise<number> {
  try {
    return await firecrackerCommand(flags, [], { ownProcess: true, vcpuThread });
  } catch (error) {
    const { message, code } = explain(error);
    process.stderr.write(`Error: ${message}\n`);
    return code;
  }
}
