/** Drives with `io_engine` Async under a Debian guest: data, power cuts, pauses, changed files, and refusals. */

import { afterAll, describe, expect, test } from "bun:test";
import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Random } from "../../src/devices/virtio/testing/fuzz.ts";
import { ioUringRefusal } from "../../src/platform/host-probe.ts";
import { request } from "../api/support.ts";
import { type GuestOptions, startGuest } from "../net/guest.ts";
import { fileInImage, finishRuns, host, hostHas, TEST_LIMIT, temporaryDirectory } from "./sparkler.ts";

const refusal = ioUringRefusal();
if (refusal !== undefined) console.log(`skip: drives with io_engine Async: io_uring is refused (${refusal})`);
const missing = ["mke2fs", "e2fsck", "debugfs"].filter((program) => !hostHas(program));
if (missing.length > 0)
  console.log(`skip: Async drives after a power cut: ${missing.join(" and ")} not installed`);

const MIB = 2 ** 20;
const dir = temporaryDirectory();
afterAll(() => {
  dir.remove();
  finishRuns();
});

function drive(path: string, more: object = {}) {
  return {
    drive_id: "data",
    is_root_device: false,
    path_on_host: path,
    cache_type: "Writeback",
    io_engine: "Async",
    ...more,
  };
}

function boot(drives: object[], script: string, more: Partial<GuestOptions> = {}) {
  return startGuest({ dir: dir.path, config: { drives }, script, ...more });
}

function sha256(data: Uint8Array): string {
  return new Bun.CryptoHasher("sha256").update(data).digest("hex");
}

function randomBytes(length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let at = 0; at < length; at += 65536) crypto.getRandomValues(bytes.subarray(at, at + 65536));
  return bytes;
}

describe.skipIf(refusal !== undefined)("io_engine Async", () => {
  test(
    "four writers and readers at once, with sums on both sides, and a rate limiter beside them",
    async () => {
      const path = join(dir.path, "shared");
      const before = randomBytes(32 * MIB);
      writeFileSync(path, before);
      const limited = join(dir.path, "limited");
      writeFileSync(limited, before.subarray(0, MIB));
      const metrics = join(dir.path, "metrics");
      const guest = await boot(
        [
          drive(path, { rate_limiter: { ops: { size: 100_000, refill_time: 100 } } }),
          drive(limited, {
            drive_id: "limited",
            rate_limiter: { bandwidth: { size: 256 * 1024, refill_time: 100 } },
          }),
        ],
        // Blocks of different sizes, at places of their own: 8 MiB each.
        `sha256sum </dev/vda; sha256sum </dev/vdb
         work() {
           dd if=/dev/urandom of=/tmp/$1 bs=1M count=6 2>/dev/null
           dd if=/tmp/$1 of=/dev/vda bs=$2 seek=$(($1 * 8388608)) oflag=seek_bytes conv=notrunc,fsync 2>/dev/null
           dd if=/dev/vda bs=$2 skip=$(($1 * 8388608)) count=6291456 iflag=skip_bytes,count_bytes 2>/dev/null |
             cmp - /tmp/$1 && echo same
         }
         for i in 0 1 2 3; do work $i $((4096 << (2 * i))) & done; wait
         echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/vda; echo over`,
        { flags: ["--metrics-path", metrics] },
      );
      await guest.expect(sha256(before));
      await guest.expect(sha256(before.subarray(0, MIB)));
      for (let i = 0; i < 4; i++) await guest.expect("same\r\n");
      const sum = (await guest.expect("  -")).trim().split(/\s+/)[0]!;
      await guest.expect("over");
      const { stderr, code } = await guest.result();
      expect({ stderr, code }).toEqual({ stderr: "", code: 0 });
      const after = readFileSync(path);
      expect(sha256(after)).toBe(sum);
      expect(after.equals(before)).toBe(false);
      for (let i = 0; i < 4; i++) {
        const [from, to] = [(8 * i + 6) * MIB, (8 * i + 8) * MIB];
        expect(after.subarray(from, to).equals(before.subarray(from, to))).toBe(true);
      }
      const last = JSON.parse(readFileSync(metrics, "utf8").trimEnd().split("\n").pop()!);
      expect(last.block_data).toMatchObject({ execute_fails: 0, invalid_reqs_count: 0 });
      expect(last.block_data.flush_count).toBeGreaterThan(0);
      expect(last.block_limited.rate_limiter_throttled_events).toBeGreaterThan(0);
    },
    2 * TEST_LIMIT,
  );

  test.skipIf(missing.length > 0).each([1, 2, 3])(
    "a monitor killed after the guest's sync loses nothing that was synced (seed %d)",
    async (seed) => {
      const random = new Random(seed * 104_729);
      const image = join(dir.path, `killed-${seed}.ext4`);
      writeFileSync(image, Buffer.alloc(32 * MIB));
      host(["mke2fs", "-q", "-F", "-t", "ext4", image]);
      const guest = await boot(
        [drive(image)],
        `mkdir -p /tmp/m; mount -t ext4 /dev/vda /tmp/m || exit 1; i=0
         while [ $i -lt 400 ]; do
           dd if=/dev/urandom of=/tmp/m/$i bs=$((1000 + i * 37)) count=$((i % 5 + 1)) 2>/dev/null
           sum=$(sha256sum </tmp/m/$i); sync; echo "synced $i \${sum%% *}"; i=$((i + 1))
         done`,
      );
      await guest.expect(`synced ${random.below(25)} `);
      await Bun.sleep(random.below(60));
      guest.child.kill("SIGKILL");
      const { code, stdout } = await guest.result();
      expect(code).toBe("SIGKILL");
      const synced = [...stdout.toString().matchAll(/synced (\d+) ([0-9a-f]{64})/g)];
      expect(synced.length).toBeGreaterThan(0);
      const copy = `${image}.copy`;
      copyFileSync(image, copy);
      // Replays the journal; 1 means that it had something to mend, which a journal replay counts as.
      host(["e2fsck", "-p", copy], [0, 1]);
      host(["e2fsck", "-fn", copy]);
      for (const [, name, sum] of synced) {
        expect({ name, sum: sha256(fileInImage(copy, `/${name}`)) }).toEqual({ name, sum: sum! });
      }
    },
    TEST_LIMIT,
  );

  test(
    "nothing is written while the guest is paused, and another file takes over in the middle of it",
    async () => {
      const [first, second] = [join(dir.path, "first"), join(dir.path, "second")];
      for (const path of [first, second]) writeFileSync(path, Buffer.alloc(8 * MIB));
      const api = join(dir.path, "api.sock");
      const guest = await boot(
        [drive(first)],
        `while :; do dd if=/dev/urandom of=/dev/vda bs=64k count=128 conv=notrunc,fsync 2>/dev/null; echo round .
         done`,
        { api },
      );
      for (let i = 0; i < 5; i++) {
        await guest.expect("round .");
        await Bun.sleep(7 * i);
        const paused = await request(api, "PATCH", "/vm", { state: "Paused" });
        expect(paused.status).toBe(204);
        const content = sha256(readFileSync(first));
        await Bun.sleep(30);
        expect(sha256(readFileSync(first))).toBe(content);
        expect((await request(api, "PATCH", "/vm", { state: "Resumed" })).status).toBe(204);
      }
      await guest.expect("round .");
      const patch = { drive_id: "data", path_on_host: second };
      expect((await request(api, "PATCH", "/drives/data", patch)).status).toBe(204);
      const left = sha256(readFileSync(first));
      for (let i = 0; i < 3; i++) await guest.expect("round .");
      expect(sha256(readFileSync(first))).toBe(left);
      expect(readFileSync(second).every((byte) => byte === 0)).toBe(false);
      guest.child.kill("SIGTERM");
      expect((await guest.result()).stderr).toBe("");
    },
    TEST_LIMIT,
  );
});

test(
  "a host that refuses io_uring refuses the drive, and says why and what to do",
  async () => {
    const path = join(dir.path, "refused");
    writeFileSync(path, Buffer.alloc(MIB));
    const wrapper = new URL("../../src/platform/testing/without-io-uring.ts", import.meta.url).pathname;
    const options = { prefix: [process.execPath, wrapper] };
    const refused = await (await boot([drive(path)], "true", options)).result();
    expect(refused.stderr).toContain(
      "Unable to create the block device `data`: FileEngine: Async: IoUring: io_uring is refused (EPERM): " +
        "set kernel.io_uring_disabled=0, or allow it in the container's seccomp filter. Or use io_engine `Sync`.",
    );
    expect(refused.code).toBe(152);
    const sync = await boot([drive(path, { io_engine: "Sync" })], "echo it runs", options);
    await sync.expect("it runs");
    expect((await sync.result()).code).toBe(0);
  },
  TEST_LIMIT,
);
