/**
 * Debian packages by Debian's own client. Nothing is installed and root is not needed: packages are downloaded
 * into the cache and unpacked there. Where a package comes from, and whether it is genuine, is apt's business.
 */

import { mkdirSync, readdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { type ImageOptions, temporaryDirectory } from "./cache.ts";
import { ImageError } from "./errors.ts";
import type { Step } from "./progress.ts";
import { type RunResult, run, runOk } from "./spawn.ts";

/** How often the growing download is measured, ms. */
const POLL_INTERVAL = 100;

/** A package that apt can download. */
export interface PackageVersion {
  name: string;
  version: string;
  /** Size of the download, bytes. */
  size: number;
  /** Names in `Depends`, the first of each group of alternatives. */
  depends: string[];
}

/** One paragraph of `apt-cache show` (deb-control(5)): fields by lower-case name. */
export function parseControl(paragraph: string): Map<string, string> {
  const fields = new Map<string, string>();
  let last = "";
  for (const line of paragraph.split("\n")) {
    const match = /^([A-Za-z0-9-]+):\s*(.*)$/.exec(line);
    if (match !== null) {
      last = match[1].toLowerCase();
      fields.set(last, match[2]);
    } else if (last !== "" && line.startsWith(" ")) {
      fields.set(last, `${fields.get(last)}\n${line.slice(1)}`);
    }
  }
  return fields;
}

/** Names in a dependency field, the first alternative of each, without version and architecture. */
export function dependencyNames(field: string): string[] {
  return field
    .split(",")
    .map((group) =>
      group
        .split("|")[0]
        .trim()
        .replace(/[\s(:[].*$/s, ""),
    )
    .filter((name) => name !== "");
}

/** The package client, with the system's package lists or, where those do not serve, with its own in the cache. */
export class PackageClient {
  private privateLists = false;

  /** `instead` ends the error about a missing apt: what the user can do without it. */
  constructor(
    private readonly options: ImageOptions,
    private readonly instead: string,
  ) {}

  /** The newest version of a package. @throws ImageError if apt does not know it. */
  async find(name: string): Promise<PackageVersion> {
    const shown = await this.apt(["apt-cache", "show", "--no-all-versions", "--", name]);
    const fields = parseControl(new TextDecoder().decode(shown.stdout).trim().split(/\n\n/)[0]);
    const version = fields.get("version");
    if (shown.exitCode === 0 && version !== undefined) {
      return {
        name,
        version,
        size: Number(fields.get("size") ?? 0),
        depends: dependencyNames(fields.get("depends") ?? ""),
      };
    }
    if (!this.privateLists) {
      await this.updatePrivateLists();
      return this.find(name);
    }
    throw new ImageError(
      `apt knows no package ${name} (are Debian's package sources configured?); ${this.instead}`,
    );
  }

  /**
   * Downloads a package and unpacks the members that match `members` (tar patterns such as `./boot/*`) into `into`.
   * @throws ImageError if the download fails or the package is damaged.
   */
  async unpack(wanted: PackageVersion, into: string, members: readonly string[]): Promise<void> {
    const dir = temporaryDirectory(join(this.options.cacheDir, "apt"));
    try {
      const file = await this.download(wanted, dir);
      await unpackMembers(file, into, members, this.instead);
    } finally {
      rmSync(dir, { recursive: true, force: true });
    }
  }

  /** Downloads into the empty directory `dir`; returns the file. */
  private async download(wanted: PackageVersion, dir: string): Promise<string> {
    const { name, version, size } = wanted;
    const step = this.options.progress.start(`Downloading ${name} ${version}`, size);
    const timer = setInterval(() => reportSize(dir, step), POLL_INTERVAL);
    let result: RunResult;
    try {
      result = await this.apt(["apt-get", "download", "-q", `${name}=${version}`], dir);
    } finally {
      clearInterval(timer);
      step.finish();
    }
    const file = readdirSync(dir).find((entry) => entry.endsWith(".deb"));
    if (result.exitCode === 0 && file !== undefined) return join(dir, file);
    if (!this.privateLists) {
      // The lists may be so old that the archive has the version no more.
      await this.updatePrivateLists();
      return this.download(await this.find(name), dir);
    }
    throw new ImageError(
      `cannot download ${name} ${version}: ${result.stderr.trim() || "apt-get gave no file"}`,
    );
  }

  private async updatePrivateLists(): Promise<void> {
    const step = this.options.progress.start("Fetching Debian's package lists");
    try {
      this.privateLists = true;
      const state = this.stateDir();
      mkdirSync(join(state, "lists", "partial"), { recursive: true });
      mkdirSync(join(state, "archives", "partial"), { recursive: true });
      // What the system does after its own updates (clearing caches, telling a desktop) is not for these lists.
      const hooks = ["Pre-Invoke", "Post-Invoke", "Post-Invoke-Success"];
      await Bun.write(this.configFile(), hooks.map((hook) => `#clear APT::Update::${hook};\n`).join(""));
      const result = await this.apt(["apt-get", "update", "-q"]);
      if (result.exitCode !== 0) {
        throw new ImageError(`apt-get update failed: ${result.stderr.trim()}; ${this.instead}`);
      }
    } finally {
      step.finish();
    }
  }

  private stateDir(): string {
    return join(this.options.cacheDir, "apt", "state");
  }

  private configFile(): string {
    return join(this.stateDir(), "apt.conf");
  }

  private apt(argv: string[], cwd?: string): Promise<RunResult> {
    const [program, ...args] = argv;
    const flags: string[] = [];
    if (this.privateLists) {
      const state = this.stateDir();
      flags.push("-c", this.configFile());
      flags.push("-o", `Dir::State::lists=${join(state, "lists")}`, "-o", `Dir::Cache=${state}`);
    }
    // As root, apt would hand the download to a user who may not be able to write to the cache.
    if (process.getuid?.() === 0) flags.push("-o", "APT::Sandbox::User=root");
    const missing = `it is needed to fetch Debian packages; ${this.instead}`;
    return run([program, ...flags, ...args], { missing, ...(cwd === undefined ? {} : { cwd }) });
  }
}

function reportSize(dir: string, step: Step): void {
  let bytes = 0;
  for (const name of readdirSync(dir)) {
    bytes += statSync(join(dir, name), { throwIfNoEntry: false })?.size ?? 0;
  }
  step.update(bytes);
}

/** Unpacks what matches `members` from a .deb file. @throws ImageError if it is damaged or a program is missing. */
async function unpackMembers(
  deb: string,
  into: string,
  members: readonly string[],
  instead: string,
): Promise<void> {
  const missing = `it is needed to unpack Debian packages; ${instead}`;
  const { stdout } = await runOk(["dpkg-deb", "--fsys-tarfile", deb], { missing });
  const tar = ["tar", "-x", "-f", "-", "-C", into, "--no-same-owner", "--wildcards", "--", ...members];
  await runOk(tar, { stdin: stdout, missing });
}
