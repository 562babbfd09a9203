/** A network namespace of a test's own, so that nothing of the host's network is touched. */

import { hostHas } from "../guests/sparkler.ts";

const PEER = new URL("./peer.ts", import.meta.url).pathname;

let namespaces = 0;

/** Why there can be none here; undefined if there can. */
export function noNamespaces(): string | undefined {
  if (!hostHas("ip")) return "ip (package iproute2) is not installed";
  if (process.getuid?.() !== 0) return "not root";
  const name = `sparkler-probe-${process.pid}`;
  const { exitCode, stderr } = Bun.spawnSync(["ip", "netns", "add", name]);
  if (exitCode !== 0) return stderr.toString().trim();
  Bun.spawnSync(["ip", "netns", "delete", name]);
  return undefined;
}

/** A running `peer.ts`. */
export class Peer {
  private readonly child: Bun.Subprocess<"ignore", "pipe", "inherit">;
  private readonly chunks: AsyncIterator<Uint8Array>;
  private text = "";

  constructor(argv: readonly string[]) {
    this.child = Bun.spawn([...argv], { stdin: "ignore", stdout: "pipe", stderr: "inherit" });
    this.chunks = this.child.stdout[Symbol.asyncIterator]();
  }

  /** The next line that it prints, or what is left of one when it ends. */
  async line(): Promise<string> {
    while (!this.text.includes("\n")) {
      const { value, done } = await this.chunks.next();
      if (done) break;
      this.text += new TextDecoder().decode(value);
    }
    const [line = "", ...rest] = this.text.split("\n");
    this.text = rest.join("\n");
    return line;
  }

  kill(): void {
    this.child.kill("SIGKILL");
  }
}

export class Namespace {
  readonly name = `sparkler-${process.pid}-${namespaces++}`;
  /** Puts a command line into the namespace. */
  readonly prefix = ["ip", "netns", "exec", this.name];
  private readonly peers: Peer[] = [];

  constructor() {
    run(["ip", "netns", "add", this.name]);
    this.run(["ip", "link", "set", "lo", "up"]);
  }

  /** A TAP device with an address, up. */
  addTap(name: string, address: string, mtu = 1500): void {
    this.run(["ip", "tuntap", "add", "dev", name, "mode", "tap"]);
    this.run(["ip", "link", "set", name, "mtu", String(mtu), "up"]);
    this.run(["ip", "addr", "add", address, "dev", name]);
  }

  /** A cable to `other`: an interface `uplink` here and one there, each with an address; all else is reached by it. */
  connect(other: Namespace, address: string, otherAddress: string): void {
    this.run(["ip", "link", "add", "uplink", "type", "veth", "peer", "name", "uplink", "netns", other.name]);
    for (const [end, own] of [
      [this, address],
      [other, otherAddress],
    ] as const) {
      end.run(["ip", "addr", "add", own, "dev", "uplink"]);
      end.run(["ip", "link", "set", "uplink", "up"]);
    }
    this.run(["ip", "route", "add", "default", "via", otherAddress.split("/")[0]!]);
  }

  /** Runs a command in the namespace and returns what it prints. Throws if it fails. */
  run(argv: readonly string[]): string {
    return run([...this.prefix, ...argv]);
  }

  /** Runs `peer.ts` in the namespace and returns once it is ready. */
  async peer(...argv: string[]): Promise<Peer> {
    const peer = new Peer([...this.prefix, process.execPath, PEER, ...argv]);
    this.peers.push(peer);
    const first = await peer.line();
    if (first !== "ready") throw new Error(`peer ${argv.join(" ")} did not start: ${first}`);
    return peer;
  }

  remove(): void {
    for (const peer of this.peers) peer.kill();
    Bun.spawnSync(["ip", "netns", "delete", this.name]);
  }
}

function run(argv: readonly string[]): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync([...argv]);
  if (exitCode !== 0) throw new Error(`${argv.join(" ")}: exit ${exitCode}: ${stderr}${stdout}`);
  return stdout.toString();
}
