/** The parts of a configuration as `GET /vm/config` shows them: every field is there. */

import type { Drive, NetworkInterface, RateLimiter, Vsock } from "./schema/resources.ts";

export function driveJson(drive: Drive): Record<string, unknown> {
  return {
    drive_id: drive.drive_id,
    partuuid: drive.partuuid ?? null,
    is_root_device: drive.is_root_device,
    cache_type: drive.cache_type ?? "Unsafe",
    is_read_only: drive.is_read_only ?? false,
    path_on_host: drive.path_on_host ?? null,
    rate_limiter: limiterJson(drive.rate_limiter),
    io_engine: drive.io_engine ?? "Sync",
    socket: null,
  };
}

export function networkJson(config: NetworkInterface): Record<string, unknown> {
  return {
    iface_id: config.iface_id,
    host_dev_name: config.host_dev_name,
    guest_mac: config.guest_mac ?? null,
    mtu: config.mtu ?? null,
    rx_rate_limiter: limiterJson(config.rx_rate_limiter),
    tx_rate_limiter: limiterJson(config.tx_rate_limiter),
  };
}

export function vsockJson({ guest_cid, uds_path }: Vsock): Record<string, unknown> {
  return { guest_cid, uds_path };
}

export function limiterJson(limiter: RateLimiter | undefined): Record<string, unknown> | null {
  const bucket = (config: RateLimiter["bandwidth"]) => {
    if (config === undefined || config.size === 0 || config.refill_time === 0) return null;
    return {
      size: config.size,
      one_time_burst: config.one_time_burst ?? null,
      refill_time: config.refill_time,
    };
  };
  const [bandwidth, ops] = [bucket(limiter?.bandwidth), bucket(limiter?.ops)];
  return bandwidth === null && ops === null ? null : { bandwidth, ops };
}
