/** From the parts of a configuration to what is built. */

import type { Balloon, Drive, NetworkInterface, Vsock } from "./schema/resources.ts";
import type { BalloonSpec, DriveSpec, NetSpec, VsockSpec } from "./spec.ts";

export function balloonSpec(config: Balloon): BalloonSpec {
  return {
    amountMib: config.amount_mib,
    deflateOnOom: config.deflate_on_oom,
    statsPollingIntervalS: config.stats_polling_interval_s ?? 0,
    freePageHinting: config.free_page_hinting ?? false,
    freePageReporting: config.free_page_reporting ?? false,
  };
}

export function driveSpec(drive: Drive): DriveSpec {
  return {
    id: drive.drive_id,
    path: drive.path_on_host ?? "",
    readOnly: drive.is_read_only ?? false,
    root: drive.is_root_device,
    partuuid: drive.partuuid,
    cacheType: drive.cache_type ?? "Unsafe",
    ioEngine: drive.io_engine,
    rateLimiter: drive.rate_limiter,
  };
}

export function netSpec(config: NetworkInterface, fd: number): NetSpec {
  return {
    id: config.iface_id,
    link: { kind: "tap", fd },
    mac: config.guest_mac === undefined ? undefined : parseMac(config.guest_mac),
    mtu: config.mtu,
    rxRateLimiter: config.rx_rate_limiter,
    txRateLimiter: config.tx_rate_limiter,
  };
}

function parseMac(text: string): Uint8Array {
  return Uint8Array.from(text.split(":"), (part) => Number.parseInt(part, 16));
}

export function vsockSpec(config: Vsock, listenFd: number): VsockSpec {
  return { guestCid: config.guest_cid, udsPath: config.uds_path, listenFd };
}
