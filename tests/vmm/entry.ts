/** The commands on the scripted CPU. Arguments: a command and its flags as JSON. */

import { explain } from "../../src/cli/exit.ts";
import { firecrackerCommand } from "../../src/cli/firecracker.ts";
import { runCommand } from "../../src/cli/run.ts";

const [command, json] = process.argv.slice(2);
const flags = JSON.parse(json!);
const overrides = { backend: new URL("./scripted-cpu.ts", import.meta.url).href };
try {
  process.exit(
    command === "run"
      ? await runCommand(["true"], flags, overrides)
      : await firecrackerCommand(flags, [], overrides),
  );
} catch (error) {
  const { message, code } = explain(error);
  process.stderr.write(`Error: ${message}\n`);
  process.exit(code);
}
