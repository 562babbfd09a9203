/** The `sparkler` program. */

import { plainFlags } from "./cli/plain-flags.ts";
import { SpareVcpu } from "./vmm/spare-vcpu.ts";

const argv = process.argv.slice(2);
const flags = plainFlags(argv);
// A thread takes longest to come up, so the first one begins before anything else is loaded.
const vcpuThread = flags?.configFile === undefined ? undefined : new SpareVcpu();

async function run(): Promise<number> {
  if (flags === undefined) return (await import("./cli/program.ts")).main(argv);
  return (await import("./cli/plain.ts")).runPlain(flags, vcpuThread);
}

// Workers may still sleep in a system call, so the process is ended rather than left to run out.
process.exit(await run());
