/** The command line: what can be given, and which module does it. Modules are loaded when their command runs. */

import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { ACCELERATORS } from "../vmm/accel.ts";
import { compileAsUsual } from "../vmm/jit-policy.ts";
import { EXIT_BAD_ARGUMENTS, EXIT_OK, explain } from "./exit.ts";
import { FIRECRACKER_FLAGS } from "./flags.ts";
import { VERSION } from "./version.ts";

/** A whole number from `min` to `max`. */
function integer(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || value < min || value > max) {
      throw new InvalidArgumentError(`Give a whole number from ${min} to ${max}.`);
    }
    return value;
  };
}

const collect = (value: string, previous: string[]) => [...previous, value];

function addRun(program: Command, done: (code: number) => void): void {
  program
    .command("run")
    .summary("run one program in a microVM of its own")
    .description(
      "Boots a microVM, runs CMD in it and ends with CMD's exit status.\n" +
        "stdin, stdout and stderr are those of CMD. Kernel and initramfs are fetched on first use.",
    )
    .usage("[options] [--] CMD [ARGS...]")
    .argument("<cmd...>", "program and its arguments, looked up in the guest")
    .passThroughOptions()
    .option("--kernel <file>", "vmlinux or bzImage to boot; needs its virtio drivers built in, or --initrd")
    .option("--initrd <file>", "initramfs (cpio) to use instead of the default one")
    .option(
      "--rootfs <path>",
      "root file system: a directory (copied, changes are lost) or an ext4 image (written to)",
    )
    .option("--mem <MiB>", "guest memory", integer(16, 2 ** 20), 256)
    .option("--vcpus <n>", "number of vCPUs", integer(1, 32), 1)
    .addOption(
      new Option("--accel <how>", "what runs the guest's code").choices(ACCELERATORS).default("auto"),
    )
    .option("--add <host:guest>", "copy a file or directory into the guest; may be given again", collect, [])
    .option("--net <how>", "network: user (through passt, without privileges) or tap:NAME")
    .option("--metadata <file>", "JSON that the guest gets at 169.254.169.254, with a token (MMDS V2)")
    .option(
      "-p, --publish <host:guest>",
      "let programs of the host reach a TCP port of the guest ([ADDRESS:]HOST:GUEST[/udp]); may be given again",
      collect,
      [],
    )
    .option("--env <name=value>", "environment variable for CMD; may be given again", collect, [])
    .option("--workdir <path>", "directory in the guest to run CMD in")
    .option("--boot-args <args>", "more arguments for the guest's kernel")
    .option("--console", "show the kernel's log on stderr")
    .option("--timings", "print on stderr when which step was done")
    .option(
      "--stats",
      "print on stderr what the CPU backend counted (instructions, exits, compiled regions) and where its time went",
    )
    .action(async (argv: string[], options: import("./run.ts").RunFlags) => {
      const { runCommand } = await import("./run.ts");
      done(await runCommand(argv, options));
    });
}

function addImage(program: Command, done: (code: number) => void): void {
  const image = program.command("image").summary("make kernels, initramfs and root file systems");
  image
    .command("kernel")
    .summary("fetch the default kernel and print its path")
    .option("--out <file>", "copy it here")
    .option("--update", "look for a newer one even if one is in the cache")
    .action(async (options: import("./image.ts").KernelFlags) => {
      done(await (await import("./image.ts")).imageKernel(options));
    });
  image
    .command("initramfs")
    .summary("build the default initramfs and print its path")
    .option("--out <file>", "copy it here")
    .action(async (options: import("./image.ts").InitramfsFlags) => {
      done(await (await import("./image.ts")).imageInitramfs(options));
    });
  image
    .command("rootfs")
    .summary("make an ext4 root file system: busybox, a directory's content, or Debian")
    .requiredOption("--out <file>", "image file to write")
    .option("--size <MiB>", "size of the image; by default what its content needs", integer(1, 2 ** 24))
    .addOption(new Option("--from <dir>", "from this directory").conflicts("debian"))
    .option("--debian", "a minimal Debian")
    .option("--include <packages>", "with --debian: more packages, separated by commas")
    .option("--suite <name>", "with --debian: which Debian, e.g. bookworm")
    .action(async (options: import("./image.ts").RootfsFlags) => {
      done(await (await import("./image.ts")).imageRootfs(options));
    });
}

/** Firecracker's flags, without a subcommand. */
function addFirecracker(program: Command, done: (code: number) => void): void {
  for (const { name, argument, text, support, default: value } of FIRECRACKER_FLAGS) {
    const option = new Option(`--${name}${argument === "" ? "" : ` ${argument}`}`, text);
    if (value !== undefined) option.default(value);
    if (support !== "yes" || name.endsWith("-us")) option.hideHelp();
    program.addOption(option);
  }
  program.addOption(
    new Option("--accel <how>", "what runs the guest's code").choices(ACCELERATORS).default("auto"),
  );
  program.action(async (options: import("./firecracker.ts").FirecrackerFlags) => {
    done(await (await import("./firecracker.ts")).firecrackerCommand(options, refusedFlags(program)));
  });
}

/** Flags given that would change what the monitor does in a way that it cannot: refused, not ignored. */
function refusedFlags(program: Command): string[] {
  const refused = FIRECRACKER_FLAGS.filter(({ support }) => support === "refused").map(
    ({ name }) => `--${name}`,
  );
  return program.options
    .filter((option) => refused.includes(option.long ?? ""))
    .filter((option) => program.getOptionValueSource(option.attributeName()) === "cli")
    .map((option) => option.long ?? option.flags);
}

function createProgram(argv: readonly string[], done: (code: number) => void): Command {
  const program = new Command("sparkler")
    .description("A microVM monitor: runs a guest with a Linux kernel of its own.")
    .version(`Sparkler v${VERSION}`, "--version", "print the version")
    .enablePositionalOptions()
    .showSuggestionAfterError()
    .exitOverride();
  addRun(program, done);
  addImage(program, done);
  program
    .command("doctor")
    .summary("tell what this host can do, and what to do about the rest")
    .action(async () => {
      done(await (await import("./doctor.ts")).doctorCommand());
    });
  program
    .command("openapi")
    .summary("print the OpenAPI document of the API")
    .action(async () => {
      done((await import("./openapi.ts")).openApiCommand());
    });
  program.command("start", { hidden: true }).action(async () => {
    done(await (await import("./start.ts")).startCommand());
  });
  // Flags first means Firecracker's command line. Without this an unknown command would count as its argument.
  if (argv.length === 0 || argv[0]!.startsWith("-")) {
    addFirecracker(program, done);
    program.allowExcessArguments(false);
  }
  for (const command of program.commands) command.exitOverride();
  return program;
}

/** Runs the command line and returns the exit code. Errors are told on stderr. */
export async function main(argv: readonly string[]): Promise<number> {
  compileAsUsual();
  let code: number = EXIT_OK;
  const program = createProgram(argv, (result) => {
    code = result;
  });
  if (argv.length === 0) {
    program.outputHelp({ error: true });
    return EXIT_BAD_ARGUMENTS;
  }
  try {
    await program.parseAsync(argv, { from: "user" });
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT_OK : EXIT_BAD_ARGUMENTS;
    const { message, code: failed } = explain(error);
    process.stderr.write(`Error: ${message}\n`);
    return failed;
  }
  return code;
}
