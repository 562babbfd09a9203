/** Running the programs that images are made with. */

import { ImageError } from "./errors.ts";

/** Longest part of a failed program's messages that is quoted, characters. */
const QUOTED_STDERR = 2000;

export interface RunOptions {
  stdin?: Uint8Array;
  cwd?: string;
  /** Said when the program is not installed, after its name: what to install, or what to use instead. */
  missing: string;
}

export interface RunResult {
  exitCode: number;
  stdout: Uint8Array;
  stderr: string;
}

/** Whether `program` is found in PATH. */
export function isInstalled(program: string): boolean {
  return Bun.which(program, { PATH: process.env.PATH ?? "" }) !== null;
}

/** Runs `argv` to its end. @throws ImageError if the program is not installed. */
export async function run(argv: string[], options: RunOptions): Promise<RunResult> {
  const program = argv[0];
  if (!isInstalled(program)) throw new ImageError(`${program} is not installed: ${options.missing}`);
  const child = Bun.spawn(argv, {
    stdin: options.stdin ?? "ignore",
    stdout: "pipe",
    stderr: "pipe",
    env: { ...process.env, LC_ALL: "C" },
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  });
  const [stdout, stderr, exitCode] = await Promise.all([
    new Response(child.stdout).bytes(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { exitCode, stdout, stderr };
}

/** As {@link run}; @throws ImageError with the program's own words if it fails. */
export async function runOk(argv: string[], options: RunOptions): Promise<RunResult> {
  const result = await run(argv, options);
  if (result.exitCode !== 0) {
    const said = result.stderr.trim().slice(-QUOTED_STDERR);
    throw new ImageError(`${argv[0]} failed (exit ${result.exitCode})${said === "" ? "" : `: ${said}`}`);
  }
  return result;
}
