/**
 * The real thing: fetches the packages, then boots the initramfs on QEMU, so that /init is known to work apart
 * from our own devices. Needs Debian's package archive and qemu-system-x86_64.
 */

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ensureInitramfs } from "./initramfs.ts";
import { ensureKernel, type Kernel } from "./kernel.ts";
import { silentProgress } from "./progress.ts";
import { busyboxRootfs } from "./rootfs.ts";
import { type RunArchiveOptions, runArchive } from "./run-archive.ts";

const QEMU = "qemu-system-x86_64";
/** On QEMU's software CPU this kernel sometimes hangs while it calibrates its timers; after this time (ms) we try again. */
const BOOT_LIMIT = 12_000;
const ATTEMPTS = 4;
/** Makes the hang rare. */
const NO_CALIBRATION = "tsc=reliable no_timer_check";

const dir = mkdtempSync(join(tmpdir(), "sparkler-guest-"));
afterAll(() => rmSync(dir, { recursive: true }));
const options = { cacheDir: join(dir, "cache"), progress: silentProgress };
const image = join(dir, "root.ext4");
let kernel: Kernel;
let initramfs: string;

interface Outcome {
  stdout: string;
  stderr: string;
  control: string;
}

/** Boots the guest with `stdin` as its input, which then ends. */
async function boot(run: RunArchiveOptions, append: string, stdin = ""): Promise<Outcome> {
  const initrd = join(dir, "initrd");
  writeFileSync(initrd, Buffer.concat([readFileSync(initramfs), runArchive(run)]));
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const ports = mkdtempSync(join(dir, "ports-"));
    const file = (name: string) => join(ports, name);
    const outputs = ["stdout", "stderr", "control"].flatMap((name) => [
      ...["-chardev", `file,id=${name},path=${file(name)}`],
      ...["-device", `virtserialport,name=sparkler.${name},chardev=${name}`],
    ]);
    const argv = [
      QEMU,
      ...["-M", "microvm,acpi=on,isa-serial=on,rtc=off,pit=on,pic=on,pcie=off", "-accel", "tcg"],
      ...["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-m", "512", "-serial", "null"],
      ...["-kernel", kernel.vmlinux, "-initrd", initrd],
      ...["-append", `console=ttyS0 quiet reboot=k panic=1 ${NO_CALIBRATION} cryptomgr.notests ${append}`],
      ...["-device", "virtio-serial-device"],
      ...["-chardev", `socket,id=stdin,path=${file("stdin")},server=on,wait=off`],
      ...["-device", "virtserialport,name=sparkler.stdin,chardev=stdin", ...outputs],
      ...["-drive", `id=root,file=${image},format=raw,if=none`, "-device", "virtio-blk-device,drive=root"],
    ];
    const qemu = Bun.spawn(argv, { stdin: "ignore", stdout: "ignore", stderr: "inherit" });
    const timer = setTimeout(() => qemu.kill(), BOOT_LIMIT);
    while (qemu.exitCode === null && !existsSync(file("stdin"))) await Bun.sleep(10);
    const socket = await Bun.connect({ unix: file("stdin"), socket: { data() {} } });
    while (qemu.exitCode === null && readFileSync(file("control"), "utf8") === "") await Bun.sleep(10);
    socket.write(stdin);
    socket.flush();
    // QEMU passes a hang-up on at once, before input that the guest has not taken yet.
    await Bun.sleep(300);
    socket.end();
    await qemu.exited;
    clearTimeout(timer);
    const [stdout, stderr, control] = ["stdout", "stderr", "control"].map((name) =>
      readFileSync(file(name), "utf8"),
    );
    if (control !== "") return { stdout, stderr, control };
  }
  throw new Error(`the guest said nothing in ${ATTEMPTS} boots`);
}

beforeAll(async () => {
  mkdirSync(options.cacheDir);
  kernel = await ensureKernel(options);
  initramfs = await ensureInitramfs({ ...options, kernel });
}, 120_000);

test("the packages give a kernel, its modules and an initramfs", async () => {
  expect(kernel.version).toMatch(/^\d+\.\d+\.\d+-.*cloud-amd64$/);
  expect(readFileSync(kernel.vmlinux).subarray(0, 4).toString("latin1")).toBe("\x7fELF");
  expect(existsSync(join(kernel.modulesDir, "modules.builtin"))).toBe(true);
  expect(statSync(initramfs).size).toBeLessThan(4 * 2 ** 20);
  const started = performance.now();
  expect(await ensureKernel(options)).toEqual(kernel);
  expect(await ensureInitramfs({ ...options, kernel })).toBe(initramfs);
  expect(performance.now() - started).toBeLessThan(50);
});

describe.skipIf(Bun.which(QEMU) === null)("the guest, on QEMU", () => {
  beforeAll(() => busyboxRootfs({ ...options, out: image }), 60_000);

  test("runs a command in a root file system", async () => {
    const added = join(dir, "show.sh");
    writeFileSync(
      added,
      `for a; do printf '[%s]' "$a"; done; pwd; cat /dev/stdin; echo err >/dev/stderr; unshare -U true || exit 9; kill -15 $$`,
    );
    const argv = ["sh", "/opt/new/show.sh", "", "a\nb\n", "É'"];
    const run = { argv, cwd: "/tmp", add: [{ host: added, guest: "/opt/new/" }] };
    expect(await boot(run, "sparkler.root=/dev/vda", "line")).toEqual({
      stdout: "[][a\nb\n][É']/tmp\nline",
      stderr: "err\n",
      control: "ready\nexit 143\n",
    });
  }, 60_000);

  test("keeps the environment exact and a read-only root read-only", async () => {
    const run = { argv: ["/bin/env"], env: { "A.B": "x\ny", PATH: "/nowhere" } };
    expect(await boot(run, "sparkler.root=/dev/vda sparkler.rootflags=ro")).toEqual({
      stdout: "PATH=/nowhere\nHOME=/root\nA.B=x\ny\n",
      stderr: "",
      control: "ready\nexit 0\n",
    });
  }, 60_000);

  test("a command that is not there", async () => {
    expect(await boot({ argv: ["nosuch"] }, "")).toEqual({
      stdout: "",
      stderr: "sparkler: nosuch: command not found\n",
      control: "ready\nexit 127\n",
    });
  }, 60_000);

  test("what keeps the guest from running it", async () => {
    const { control } = await boot({ argv: ["true"], cwd: "/absent" }, "");
    expect(control).toBe("error the working directory /absent does not exist in the root file system\n");
  }, 60_000);
});
