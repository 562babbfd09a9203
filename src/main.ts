/** The `sparkler` program. */

import { plainFlags, runPlain } from "./cli/plain-flags.ts";

const argv = process.argv.slice(2);
const flags = plainFlags(argv);
const run = async () =>
  flags === undefined ? (await import("./cli/program.ts")).main(argv) : runPlain(flags);
// Workers may still sleep in a system call, so the process is ended rather than left to run out.
process.exit(await run());
