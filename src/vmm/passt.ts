/**
 * A network for a guest without privileges: passt (Debian package of that name) turns the guest's frames into
 * sockets of an ordinary process. The guest has a private network of its own, whose other end is passt.
 */

import { closeFile } from "../platform/files.ts";
import { setSocketBuffers, socketPair } from "../platform/unix-socket.ts";
import { ConfigError } from "./config-error.ts";
import type { NetSpec } from "./spec.ts";

/** Addresses of the guest's network. The name server forwards to the host's. */
export const PASST_NETWORK = {
  guest: "10.0.2.15",
  prefix: 24,
  netmask: "255.255.255.0",
  gateway: "10.0.2.2",
  dns: "10.0.2.3",
} as const;

const GUEST_MAC = Uint8Array.of(0x02, 0, 0x0a, 0, 0x02, 0x0f);
const GATEWAY_MAC = "02:00:0a:00:02:02";
/** What passt takes at most: an IP packet of 64 KiB less the Ethernet header, in whole words. */
const MTU = 65520;
/** Asked for; the kernel gives what net.core.wmem_max allows. Each frame may have 64 KiB. */
const SOCKET_BYTES = 4 * 2 ** 20;
/** Descriptor of the socket in passt. */
const CHILD_FD = 3;

/** A port of the host that leads to one of the guest. */
export interface PortForward {
  readonly protocol: "tcp" | "udp";
  /** Address of the host to listen on. */
  readonly address: string;
  readonly hostPort: number;
  readonly guestPort: number;
}

export interface Passt {
  readonly net: NetSpec;
  /** Settles if passt ends before {@link close}, with what it said. */
  readonly failed: Promise<string>;
  close(): void;
}

function forwardArguments(flag: string, forwards: readonly PortForward[]): string[] {
  // Without an explicit "none" passt forwards the UDP ports of the same numbers as the TCP ports.
  if (forwards.length === 0) return [flag, "none"];
  return forwards.flatMap(({ address, hostPort, guestPort }) => [
    flag,
    `${address}/${hostPort}:${guestPort}`,
  ]);
}

/** Starts passt. Throws {@link ConfigError} if it is not installed. That a port is taken is told by `failed`. */
export function startPasst(id: string, forwards: readonly PortForward[]): Passt {
  const program = Bun.which("passt");
  if (program === null) {
    throw new ConfigError(
      "A network without privileges needs passt, which is not installed: apt-get install passt.",
    );
  }
  const [ours, theirs] = socketPair();
  setSocketBuffers(ours, SOCKET_BYTES);
  setSocketBuffers(theirs, SOCKET_BYTES);
  const argv = [
    program,
    ...["--foreground", "--quiet", "--ipv4-only", "--fd", String(CHILD_FD)],
    ...["--address", PASST_NETWORK.guest, "--netmask", PASST_NETWORK.netmask],
    ...["--gateway", PASST_NETWORK.gateway, "--mac-addr", GATEWAY_MAC],
    // The guest's own gateway must not be a way to what listens on the host's loopback addresses.
    ...["--no-map-gw", "--dns-forward", PASST_NETWORK.dns],
    ...forwardArguments(
      "--tcp-ports",
      forwards.filter(({ protocol }) => protocol === "tcp"),
    ),
    ...forwardArguments(
      "--udp-ports",
      forwards.filter(({ protocol }) => protocol === "udp"),
    ),
  ];
  let child: Bun.Subprocess;
  try {
    child = Bun.spawn(argv, { stdio: ["ignore", "ignore", "pipe", theirs], env: { LC_ALL: "C" } });
  } catch (error) {
    closeFile(ours);
    throw error;
  } finally {
    closeFile(theirs);
  }
  let closed = false;
  return {
    net: { id, link: { kind: "stream", fd: ours }, mac: GUEST_MAC, mtu: MTU },
    failed: failure(child, () => closed),
    close: () => {
      if (closed) return;
      closed = true;
      closeFile(ours);
      child.kill("SIGKILL");
    },
  };
}

async function failure(child: Bun.Subprocess, expected: () => boolean): Promise<string> {
  const { stderr } = child;
  const said = stderr instanceof ReadableStream ? await new Response(stderr).text() : "";
  await child.exited;
  if (expected()) return new Promise<never>(() => {});
  // Where there is no system log passt complains of that for every line.
  const lines = said.split("\n").filter((line) => line.trim() !== "" && !/to syslog$/.test(line));
  return lines.join(" ").trim() || `exit status ${child.exitCode ?? child.signalCode}`;
}
