/** The network tests that have a size, with a large one. */

import { expect, test } from "bun:test";

const LIMIT = 20 * 60_000;

test.each([
  ["vsock: 1 GiB each way in 100 connections", "vsock.test.ts", { SPARKLER_VSOCK_MIB: "1024" }],
  ["a TAP device: 64 MiB each way", "tap.test.ts", { SPARKLER_NET_MIB: "64" }],
  ["passt: 48 MiB each way", "user.test.ts", { SPARKLER_NET_MIB: "48" }],
])(
  "%s",
  async (_, file, env) => {
    const path = new URL(file, import.meta.url).pathname;
    const child = Bun.spawn([process.execPath, "test", path], {
      env: { ...process.env, ...env },
      stdout: "inherit",
      stderr: "inherit",
    });
    expect(await child.exited).toBe(0);
  },
  LIMIT,
);
