/** The `sparkler` program. */

import { main } from "./cli/program.ts";

// Workers may still sleep in a system call, so the process is ended rather than left to run out.
process.exit(await main(process.argv.slice(2)));
