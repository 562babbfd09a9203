/** The commands on the scripted CPU. Arguments: a command, its flags as JSON, and more overrides as JSON. */

import { explain } from "../../src/cli/exit.ts";
import { firecrackerCommand } from "../../src/cli/firecracker.ts";
import { runCommand } from "../../src/cli/run.ts";

const [command, json, more = "{}"] = process.argv.slice(2);
const flags = JSON.parse(json!);
const overrides = { backend: new URL("./scripted-cpu.ts", import.meta.url).href, ...JSON.parse(more) };
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
