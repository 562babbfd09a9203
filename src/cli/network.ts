/** The network flags of `sparkler run`. */

import { closeFile } from "../platform/files.ts";
import { PASST_NETWORK, type Passt, type PortForward, startPasst } from "../vmm/passt.ts";
import type { NetSpec } from "../vmm/spec.ts";
import { openTapDevice } from "../vmm/tap-device.ts";
import { UsageError } from "./exit.ts";

/** The network of one run. */
export interface RunNetwork {
  readonly net: NetSpec;
  /** For the guest's kernel. */
  readonly bootArgs: string;
  /** Settles if the network ends before the machine does, with the reason. */
  readonly failed: Promise<string>;
  close(): void;
}

export const IFACE_ID = "eth0";
const TAP_PREFIX = "tap:";
const MAX_PORT = 65535;

/**
 * Sets up what `--net` and `-p` ask for; undefined if they ask for nothing. Throws {@link UsageError}, or
 * `ConfigError` if it cannot be.
 */
export function runNetwork(how: string | undefined, publish: readonly string[]): RunNetwork | undefined {
  const forwards = publish.map(parsePublish);
  if (how === undefined && forwards.length === 0) return undefined;
  if (how === undefined || how === "user") return userNetwork(startPasst(IFACE_ID, forwards));
  if (!how.startsWith(TAP_PREFIX)) throw new UsageError(`--net ${how}: give user or tap:NAME.`);
  if (forwards.length > 0) {
    throw new UsageError("-p is for --net user: a guest on a tap device is reached by its own address.");
  }
  const fd = openTapDevice(how.slice(TAP_PREFIX.length));
  return {
    net: { id: IFACE_ID, link: { kind: "tap", fd } },
    bootArgs: "",
    failed: new Promise(() => {}),
    close: () => closeFile(fd),
  };
}

function userNetwork(passt: Passt): RunNetwork {
  const { guest, prefix, gateway, dns } = PASST_NETWORK;
  return {
    net: passt.net,
    bootArgs: `sparkler.ip=${guest}/${prefix},${gateway},${dns}`,
    failed: passt.failed.then((said) => `passt, which carries the guest's network, has ended: ${said}`),
    close: () => passt.close(),
  };
}

/** `[ADDRESS:]HOST:GUEST[/udp]`. Without an address only programs of this host get in. */
function parsePublish(text: string): PortForward {
  const match = /^(?:(\d{1,3}(?:\.\d{1,3}){3}):)?(\d{1,5}):(\d{1,5})(?:\/(tcp|udp))?$/.exec(text);
  const [, address = "127.0.0.1", host, guest, protocol] = match ?? [];
  const [hostPort, guestPort] = [Number(host), Number(guest)];
  if (match === null || !isPort(hostPort) || !isPort(guestPort)) {
    throw new UsageError(`-p ${text}: give [ADDRESS:]HOST:GUEST[/udp], with ports from 1 to ${MAX_PORT}.`);
  }
  return { protocol: protocol === "udp" ? "udp" : "tcp", address, hostPort, guestPort };
}

function isPort(port: number): boolean {
  return port >= 1 && port <= MAX_PORT;
}
