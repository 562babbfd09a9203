/** Drives as Linux uses them: roots by partition id, and room that a guest gives back with discard. */

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { copyFileSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { type BootFiles, bootFiles } from "./boot-files.ts";
import { ConsoleShell } from "./console-shell.ts";
import { finishRuns, host, hostHas, Started, TEST_LIMIT, temporaryDirectory } from "./sparkler.ts";

const MIB = 2 ** 20;
const SECTOR = 512;

const dir = temporaryDirectory();
afterAll(() => {
  dir.remove();
  finishRuns();
});

let files: BootFiles;
beforeAll(async () => {
  files = await bootFiles();
}, 120_000);

const missing = ["mke2fs", "e2fsck"].filter((program) => !hostHas(program));
if (missing.length > 0) console.log(`skip: a guest's drives: ${missing.join(" and ")} not installed`);

let configs = 0;
function start(drives: object[]): Started {
  const path = join(dir.path, `vm-${configs++}.json`);
  const boot = {
    kernel_image_path: files.vmlinux,
    initrd_path: files.initramfs,
    boot_args: "console=ttyS0 reboot=k panic=1 quiet cryptomgr.notests",
  };
  writeFileSync(path, JSON.stringify({ "boot-source": boot, drives }));
  return new Started(["--no-api", "--config-file", path, "--level", "Warn", "--accel", "soft"], "pipe");
}

/** A directory with busybox and an init that runs `script`. */
function rootDirectory(name: string, script: string): string {
  const root = join(dir.path, `${name}.d`);
  mkdirSync(join(root, "sbin"), { recursive: true });
  copyFileSync(files.busybox, join(root, "sbin", "busybox"));
  writeFileSync(join(root, "sbin", "init"), `#!/sbin/busybox sh\n${script}\n`, { mode: 0o755 });
  return root;
}

/** Sector numbers and ids of a disk with two partitions, the second of which is the root. */
interface Table {
  readonly name: string;
  readonly bytes: (sectors: number) => Buffer;
  readonly id: string;
}

const FIRST = { start: 64, end: 1023 };
const ROOT_START = 2048;

/** Master boot record (UEFI 2.10, 5.2.1). */
function mbr(signature: number, partitions: readonly { type: number; start: number; end: number }[]): Buffer {
  const sector = Buffer.alloc(SECTOR);
  sector.writeUInt32LE(signature, 440);
  for (const [i, { type, start, end }] of partitions.entries()) {
    sector.writeUInt8(type, 446 + 16 * i + 4);
    sector.writeUInt32LE(start, 446 + 16 * i + 8);
    sector.writeUInt32LE(end - start + 1, 446 + 16 * i + 12);
  }
  sector.writeUInt16LE(0xaa55, 510);
  return sector;
}

/** Header and entries of a GUID partition table at the start of a disk (UEFI 2.10, 5.3). */
function gpt(sectors: number, guids: readonly Buffer[]): Buffer {
  const entries = Buffer.alloc(128 * 128);
  const ranges = [FIRST, { start: ROOT_START, end: sectors - 34 }];
  for (const [i, { start, end }] of ranges.entries()) {
    // Linux filesystem data.
    Buffer.from("af3dc60f838472478e793d69d8477de4", "hex").copy(entries, 128 * i);
    guids[i]!.copy(entries, 128 * i + 16);
    entries.writeBigUInt64LE(BigInt(start), 128 * i + 32);
    entries.writeBigUInt64LE(BigInt(end), 128 * i + 40);
  }
  const header = Buffer.alloc(SECTOR);
  header.write("EFI PART");
  header.writeUInt32LE(0x10000, 8);
  header.writeUInt32LE(92, 12);
  header.writeBigUInt64LE(1n, 24);
  header.writeBigUInt64LE(BigInt(sectors - 1), 32);
  header.writeBigUInt64LE(34n, 40);
  header.writeBigUInt64LE(BigInt(sectors - 34), 48);
  header.fill(0x5c, 56, 72);
  header.writeBigUInt64LE(2n, 72);
  header.writeUInt32LE(128, 80);
  header.writeUInt32LE(128, 84);
  header.writeUInt32LE(Bun.hash.crc32(entries), 88);
  header.writeUInt32LE(Bun.hash.crc32(header.subarray(0, 92)), 16);
  const protective = mbr(0, [{ type: 0xee, start: 1, end: sectors - 1 }]);
  return Buffer.concat([protective, header, entries]);
}

const TABLES: readonly Table[] = [
  {
    name: "MBR",
    bytes: (sectors) =>
      mbr(0x00a1_b2c3, [
        { type: 0x83, ...FIRST },
        { type: 0x83, start: ROOT_START, end: sectors - 1 },
      ]),
    id: "00a1b2c3-02",
  },
  {
    name: "GPT",
    bytes: (sectors) =>
      gpt(sectors, [Buffer.alloc(16, 0x11), Buffer.from("00112233445566778899aabbccddeeff", "hex")]),
    id: "33221100-5544-7766-8899-AABBCCDDEEFF",
  },
];

describe.skipIf(missing.length > 0)("the root is a partition, by its id", () => {
  test.each(TABLES)(
    "$name",
    async ({ name, bytes, id }) => {
      const root = rootDirectory(
        name,
        "/sbin/busybox mount | /sbin/busybox grep ' / ' >/dev/console; /sbin/busybox reboot -f",
      );
      const path = join(dir.path, `${name}.disk`);
      const size = 20 * MIB;
      const offset = ROOT_START * SECTOR;
      writeFileSync(path, Buffer.alloc(size));
      const room = `${(size - offset - MIB) / 1024}K`;
      host(["mke2fs", "-q", "-F", "-t", "ext4", "-E", `offset=${offset}`, "-d", root, path, room]);
      const disk = readFileSync(path);
      bytes(size / SECTOR).copy(disk);
      writeFileSync(path, disk);
      const drive = { drive_id: "root", is_root_device: true, path_on_host: path, partuuid: id };
      const { code, stdout } = await start([drive]).result();
      expect(stdout.toString()).toContain("/dev/vda2 on / type ext4 (rw");
      expect(code).toBe(0);
      const other = await start([{ ...drive, partuuid: "00a1b2c3-03" }]).result();
      expect(other.stdout.toString()).toContain("PARTUUID=00a1b2c3-03 does not exist: is a drive attached?");
    },
    2 * TEST_LIMIT,
  );
});

/** Puts a program of the host below `root`, with the libraries that it needs. Returns its path. */
function addProgram(root: string, program: string): string {
  const path = Bun.which(program, { PATH: "/usr/sbin:/sbin:/usr/bin:/bin" })!;
  const libraries = host(["ldd", path]).match(/\/\S+/g) ?? [];
  for (const file of [path, ...libraries]) {
    mkdirSync(join(root, dirname(file)), { recursive: true });
    copyFileSync(file, join(root, file));
  }
  return path;
}

describe.skipIf(missing.length > 0)("discard", () => {
  test(
    "mkfs.ext4, deleted files and fstrim give room back to the host, and no data is lost",
    async () => {
      const root = rootDirectory(
        "discard",
        `export PATH=/bin:/sbin:/usr/bin:/usr/sbin
/sbin/busybox mkdir -p /bin /mnt
/sbin/busybox --install -s /bin
/sbin/busybox setsid cttyhack sh </dev/console >/dev/console 2>&1`,
      );
      const mke2fs = addProgram(root, "mke2fs");
      const image = join(dir.path, "discard.ext4");
      host(["mke2fs", "-q", "-F", "-t", "ext4", "-d", root, image, "32M"]);
      const data = join(dir.path, "data");
      writeFileSync(data, Buffer.alloc(64 * MIB, 0xaa));
      const other = join(dir.path, "other");
      writeFileSync(other, Buffer.alloc(MIB));
      const used = () => Math.round((statSync(data).blocks * 512) / MIB);
      const full = used();

      const drive = { is_root_device: false, cache_type: "Writeback" };
      const shell = new ConsoleShell(
        start([
          { ...drive, drive_id: "root", is_root_device: true, path_on_host: image },
          { ...drive, drive_id: "data", path_on_host: data },
          { ...drive, drive_id: "other", path_on_host: other, is_read_only: true },
        ]),
      );
      await shell.ready();
      const limits =
        "cat /sys/block/vd[bc]/queue/discard_max_bytes /sys/block/vd[bc]/queue/write_zeroes_max_bytes";
      expect(await shell.type(limits)).toBe(`${2 ** 31}\n0\n${2 ** 25}\n0\n`);
      expect(await shell.type(`${mke2fs} -t ext4 -q -F /dev/vdb; echo $?`)).toBe("0\n");
      await shell.type("sync");
      const made = used();
      expect(await shell.type("mount -t ext4 -o discard /dev/vdb /mnt; echo $?")).toBe("0\n");
      const sum = await shell.type(
        "dd if=/dev/urandom of=/mnt/keep bs=1M count=4 2>/dev/null; sha256sum </mnt/keep",
      );
      await shell.type("dd if=/dev/zero of=/mnt/gone bs=1M count=30 2>/dev/null; sync");
      const written = used();
      // The discards follow the transaction that frees the blocks.
      await shell.type("rm /mnt/gone; sync; fstrim /mnt; sync");
      const freed = used();
      process.stderr.write(`          on the host: ${full} -> ${made} -> ${written} -> ${freed} MiB\n`);
      expect(made).toBeLessThan(10);
      expect(written).toBeGreaterThan(30);
      expect(freed).toBeLessThan(written - 25);
      expect(await shell.type("echo 3 >/proc/sys/vm/drop_caches; sha256sum </mnt/keep; umount /mnt")).toBe(
        sum,
      );
      const { code, stderr } = await shell.reboot();
      expect(stderr).toBe("");
      expect(code).toBe(0);
      host(["e2fsck", "-fn", data]);
      expect(statSync(data).size).toBe(64 * MIB);
    },
    4 * TEST_LIMIT,
  );
});
