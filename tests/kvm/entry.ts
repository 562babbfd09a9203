/** Firecracker's command on KVM with a CPUID that the kernel of `linux.ts` needs. Argument: its flags as JSON. */

import { explain } from "../../src/cli/exit.ts";
import { firecrackerCommand } from "../../src/cli/firecracker.ts";

const flags = JSON.parse(process.argv[2]!);
try {
  const backend = new URL("./v1-backend.ts", import.meta.url).href;
  process.exit(await firecrackerCommand(flags, [], { backend }));
} catch (error) {
  const { message, code } = explain(error);
  process.stderr.write(`Error: ${message}\n`);
  process.exit(code);
}
