/** The `sparkler` program. */

import { plainFlags } from "./cli/plain-flags.ts";
import { wantsVcpuThread } from "./cli/wants-thread.ts";
import { SpareVcpu } from "./vmm/spare-vcpu.ts";

const argv = process.argv.slice(2);
const flags = plainFlags(argv);
// A thread takes longest to come up, so one that is needed begins before anything else is loaded.
const vcpuThread = flags !== undefined && wantsVcpuThread(flags) ? new SpareVcpu() : undefined;

async function run(): Promise<number> {
  if (flags === undefined) return (await import("./cli/program.ts")).main(argv);
  const startsOne = flags.configFile !== undefined && flags.accel !== "soft";
  const { runPlain } = await (startsOne ? import("./cli/plain-machine.ts") : import("./cli/plain.ts"));
  return runPlain(flags, vcpuThread);
}

// Workers may still sleep in a system call, so the process is ended rather than left to run out.
process.exit(await run());
