/** Whole microVMs on each backend: threads, devices, interrupts, and how they end. */

import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import {
  I8042_COMMAND_PORT,
  PM1_CONTROL_PORT,
  PM1_EVENT_PORT,
  SERIAL_PORT_START,
  VIRTIO_MMIO_START,
} from "../../src/boot/layout.ts";
import * as mmio from "../../src/devices/virtio/mmio/registers.ts";
import { KVM_MAX_VCPUS } from "../../src/hypervisor/kvm/machine.ts";
import { CC_NE } from "../oracle/asm.ts";
import { type GuestCode, RAX, RBX, RCX, RDX, RSI } from "./guest-code.ts";
import { backendNames, noKvm } from "./machine.ts";
import { pingEach, pingPong } from "./several-vcpus.ts";
import { startGuest } from "./whole-machine.ts";

const GAP_DIRECTORY = 0xc000;
const IDT = 0x22_0000;
const COUNTER = 0x23_0000;
const RINGS = 0x24_0000;
const VECTOR = 0x41;

describe.each(backendNames())("%s", (backend) => {
  test("a guest prints on its serial port and resets by the i8042", async () => {
    const microvm = await startGuest({ backend }, (guest) => {
      guest.print("before\n");
      guest.lea(RSI, { label: "text", disp: 0 });
      guest.movImm(RCX, 6);
      guest.movImm(RDX, 0x3f8);
      guest.repOuts(1);
      guest.reset();
      guest.label("text");
      guest.raw(...new TextEncoder().encode("after\n"));
    });
    expect(await microvm.ended).toMatchObject({ end: { kind: "reset" }, consoleTail: "before\nafter\n" });
  });

  test("a kernel with a PVH note is entered in 32-bit mode, with what the protocol tells", async () => {
    const print = [0x66, 0xba, SERIAL_PORT_START & 0xff, SERIAL_PORT_START >> 8, 0xee]; // mov dx, port; out dx, al
    const microvm = await startGuest({ backend, pvh: true, bootArgs: "pvh" }, (guest) => {
      guest.raw(0x8b, 0x03); // mov eax, [ebx]
      guest.raw(0x3d, 0x78, 0xc5, 0x6e, 0x33); // cmp eax, XEN_HVM_START_MAGIC_VALUE
      guest.raw(0x75, 0xfe); // jne to itself
      guest.raw(0x8a, 0x43, 0x04, 0x04, 0x30, ...print); // mov al, [ebx+4]; add al, '0': the version
      guest.raw(0x8b, 0x73, 0x18); // mov esi, [ebx+24]: the command line
      for (let i = 0; i < 3; i++) guest.raw(0xac, ...print); // lodsb
      guest.raw(0x8b, 0x73, 0x28); // mov esi, [ebx+40]: the memory map
      guest.raw(0x8a, 0x46, 0x10, 0x04, 0x30, ...print); // mov al, [esi+16]: the first entry is RAM
      guest.raw(0xb0, 0xfe, 0xe6, I8042_COMMAND_PORT, 0xeb, 0xfe); // mov al, 0xfe; out, al; jmp to itself
    });
    expect(await microvm.ended).toMatchObject({ end: { kind: "reset" }, consoleTail: "1pvh1" });
  });

  test("a triple fault is told of with the registers", async () => {
    const microvm = await startGuest({ backend }, (guest) => guest.ud2());
    const { end } = await microvm.ended;
    expect(end.kind).toBe("shutdown");
    if (end.kind === "shutdown") expect(end.detail).toContain("rip=");
  });

  test("the PM1 registers are where ACPI says", async () => {
    const microvm = await startGuest({ backend }, (guest) => {
      guest.outPort(PM1_EVENT_PORT + 2, 2, 0x0021);
      for (const port of [PM1_EVENT_PORT + 2, PM1_CONTROL_PORT]) {
        guest.movImm(RDX, port);
        guest.movImm(RAX, 0);
        guest.inDx(2);
        guest.raw(0x04, 0x30); // add al, 0x30
        guest.movImm(RDX, SERIAL_PORT_START);
        guest.outDx(1);
      }
      guest.reset();
    });
    // GBL_EN and TMR_EN as written, and SCI_EN.
    expect((await microvm.ended).consoleTail).toBe("Q1");
  });

  test("a virtio device serves requests one after the other, each with its interrupt", async () => {
    const requests = 50;
    const microvm = await startGuest({ backend, entropy: true }, (guest) => {
      guest.mapGib(3, GAP_DIRECTORY);
      guest.enableApic();
      guest.loadIdt(IDT, VECTOR, "handler");
      guest.routeGsi(5, VECTOR);
      startEntropyDriver(guest);
      for (let i = 1; i <= requests; i++) {
        // Offers buffer 0 again, and clears what it got.
        guest.poke(RINGS + 0x5000, 0);
        guest.poke(RINGS + 0x1000, i << 16);
        guest.poke(VIRTIO_MMIO_START + mmio.QUEUE_NOTIFY, 0);
        guest.waitForCount(COUNTER, i);
        // 8 random bytes are not all zero.
        guest.movImm(RBX, RINGS + 0x5000);
        guest.loadA(8);
        guest.test(RAX, RAX);
        guest.jcc(CC_NE, `filled ${i}`);
        guest.print("empty\n");
        guest.label(`filled ${i}`);
      }
      guest.print("done\n");
      guest.reset();
      guest.countingHandler("handler", COUNTER);
    });
    const { end, consoleTail, stats } = await microvm.ended;
    expect({ end, consoleTail }).toEqual({ end: { kind: "reset" }, consoleTail: "done\n" });
    // The driver's set-up is all that left the guest: not one of the notifications did.
    if (backend === "kvm") expect(stats["exits: MMIO"]).toBe(SETUP_WRITES);
  });

  test("pause holds the guest still, resume lets it go on, again and again", async () => {
    const microvm = await startGuest({ backend }, (guest) => {
      guest.label("next");
      guest.print("x");
      guest.jmp("next");
    });
    const sent = async () => (await microvm.deviceMetrics()).uart.sent;
    const until = async (condition: (count: number) => boolean) => {
      for (;;) {
        const count = await sent();
        if (condition(count)) return count;
        await Bun.sleep(1);
      }
    };
    for (let i = 0; i < 10; i++) {
      const before = await sent();
      await until((count) => count > before);
      await microvm.pause();
      expect(microvm.paused).toBe(true);
      // What was in the port's buffer still comes out.
      let last = -1;
      const still = await until((count) => {
        const same = count === last;
        last = count;
        return same;
      });
      await Bun.sleep(5);
      expect(await sent()).toBe(still);
      microvm.resume();
    }
    // Without a look in between the vCPU is caught in every possible place.
    for (let i = 0; i < 500; i++) {
      await microvm.pause();
      microvm.resume();
    }
    await microvm.pause();
    microvm.stop();
    expect((await microvm.ended).end).toEqual({ kind: "stopped" });
  });
});

/** Register writes of {@link startEntropyDriver}. */
const SETUP_WRITES = 17;

/** Makes device 0 ready with one queue of 8 whose descriptor 0 is 64 bytes to write. */
function startEntropyDriver(guest: GuestCode): void {
  let writes = 0;
  const write = (register: number, value: number) => {
    guest.poke(VIRTIO_MMIO_START + register, value);
    writes++;
  };
  write(mmio.STATUS, 0);
  write(mmio.STATUS, mmio.STATUS_ACKNOWLEDGE);
  write(mmio.STATUS, mmio.STATUS_ACKNOWLEDGE | mmio.STATUS_DRIVER);
  write(mmio.DRIVER_FEATURES_SEL, 1);
  write(mmio.DRIVER_FEATURES, 1); // VIRTIO_F_VERSION_1
  const featuresOk = mmio.STATUS_ACKNOWLEDGE | mmio.STATUS_DRIVER | mmio.STATUS_FEATURES_OK;
  write(mmio.STATUS, featuresOk);
  write(mmio.QUEUE_SEL, 0);
  write(mmio.QUEUE_NUM, 8);
  for (const [low, high, gpa] of [
    [mmio.QUEUE_DESC_LOW, mmio.QUEUE_DESC_HIGH, RINGS],
    [mmio.QUEUE_DRIVER_LOW, mmio.QUEUE_DRIVER_HIGH, RINGS + 0x1000],
    [mmio.QUEUE_DEVICE_LOW, mmio.QUEUE_DEVICE_HIGH, RINGS + 0x2000],
  ] as const) {
    write(low, gpa);
    write(high, 0);
  }
  write(mmio.QUEUE_READY, 1);
  write(mmio.STATUS, featuresOk | mmio.STATUS_DRIVER_OK);
  write(mmio.INTERRUPT_ACK, 3);
  if (writes !== SETUP_WRITES) throw new Error(`the set-up takes ${writes} writes`);
  guest.poke(RINGS, RINGS + 0x5000);
  guest.poke(RINGS + 8, 64);
  guest.poke(RINGS + 12, 2); // VIRTQ_DESC_F_WRITE
}

const reason = noKvm();

describe.skipIf(reason !== undefined)("KVM", () => {
  /** Ways for a guest to run for ever. */
  const ENDLESS: Record<string, (guest: GuestCode) => void> = {
    "in a loop": (guest) => guest.spin(),
    "in HLT": (guest) => {
      guest.label("halt");
      guest.sti();
      guest.hlt();
      guest.jmp("halt");
    },
    "in HLT without interrupts": (guest) => {
      guest.cli();
      guest.hlt();
    },
    "leaving for ports": (guest) => {
      guest.label("port");
      guest.outPort(0x80, 1, 1);
      guest.jmp("port");
    },
    "leaving for memory": (guest) => {
      guest.mapGib(3, GAP_DIRECTORY);
      guest.label("memory");
      guest.poke(0xd000_0000, 1);
      guest.jmp("memory");
    },
    "flooding the serial port": (guest) => {
      guest.label("flood");
      guest.print("x");
      guest.jmp("flood");
    },
  };

  test.each(Object.entries(ENDLESS))("a stop always arrives: guest %s", async (_, code) => {
    for (let i = 0; i < 8; i++) {
      const microvm = await startGuest({ backend: "kvm", vcpus: 1 + (i % 2) }, code);
      // At once, while the vCPU enters the guest, and later.
      if (i % 4 > 1) await Bun.sleep(Math.random() * 4);
      // One that does not arrive ends the microVM with an error.
      microvm.stop();
      expect((await microvm.ended).end).toEqual({ kind: "stopped" });
    }
  });

  test("two vCPUs pause and resume together under load", async () => {
    const microvm = await startGuest({ backend: "kvm", vcpus: 2 }, ENDLESS["leaving for ports"]!);
    for (let i = 0; i < 300; i++) {
      await microvm.pause();
      microvm.resume();
    }
    microvm.stop();
    const { end, stats } = await microvm.ended;
    expect(end).toEqual({ kind: "stopped" });
    expect(stats["exits: IO"]).toBeGreaterThan(0);
  });

  test("two vCPUs talk through memory and interrupts", async () => {
    const rounds = 200;
    const microvm = await startGuest({ backend: "kvm", vcpus: 2 }, (guest) => pingPong(guest, rounds));
    const { end, consoleTail } = await microvm.ended;
    expect({ end, consoleTail }).toEqual({ end: { kind: "reset" }, consoleTail: "started done\n" });
  });

  test.each([
    [1, false, "1"],
    [1, true, "1"],
    [2, false, "1"],
    [2, true, "2"],
  ])("%d vCPUs with smt %p: threads of a core, as CPUID tells", async (vcpus, smt, threads) => {
    const microvm = await startGuest({ backend: "kvm", vcpus, smt }, (guest) => {
      guest.movImm(RAX, 0xb);
      guest.movImm(RCX, 0);
      guest.raw(0x0f, 0xa2); // cpuid
      guest.raw(0x8d, 0x43, 0x30); // lea eax, [rbx+0x30]
      guest.movImm(RDX, 0x3f8);
      guest.outDx(1);
      guest.reset();
    });
    expect((await microvm.ended).consoleTail).toBe(threads);
  });

  test("as many vCPUs as there may be start, answer and stop together", async () => {
    const microvm = await startGuest({ backend: "kvm", vcpus: KVM_MAX_VCPUS }, (guest) =>
      pingEach(guest, KVM_MAX_VCPUS - 1),
    );
    const { end, consoleTail } = await microvm.ended;
    expect({ end, consoleTail }).toEqual({ end: { kind: "reset" }, consoleTail: "started done\n" });
  });

  test("memory above 4 GiB belongs to the machine", async () => {
    const memMib = 4000;
    const high = 2 ** 32 + (memMib - 3072) * 2 ** 20 - 8;
    const microvm = await startGuest({ backend: "kvm", memMib }, (guest) => {
      guest.mapGib(4, GAP_DIRECTORY);
      guest.movImm(RBX, high);
      guest.movImm(RAX, 0x1234_5678_9abc);
      guest.storeA(8);
      guest.movImm(RAX, 0);
      guest.loadA(8);
      guest.movImm(RCX, 0x1234_5678_9abc);
      guest.cmp(RAX, RCX);
      guest.jcc(CC_NE, "end");
      guest.print("kept\n");
      guest.label("end");
      guest.reset();
    });
    expect(await microvm.ended).toMatchObject({ end: { kind: "reset" }, consoleTail: "kept\n" });
  });

  test("machines come and go without leaving descriptors behind", async () => {
    let before: string[] = [];
    for (let i = 0; i < 6; i++) {
      const microvm = await startGuest({ backend: "kvm", vcpus: 2, entropy: true }, (guest) => guest.reset());
      await microvm.ended;
      // The first ones start the runtime's helper threads, which have eventfds of their own.
      if (i === 2) before = descriptors(/kvm|eventfd/);
    }
    // The runtime's own go a little after a thread's end.
    await until(() => descriptors(/kvm|eventfd/).length <= before.length);
    expect(descriptors(/kvm|eventfd/).length).toBeLessThanOrEqual(before.length);
    expect(descriptors(/kvm/)).toEqual([]);
  });

  test("a machine that cannot be built leaves nothing of KVM behind", async () => {
    for (let i = 0; i < 4; i++) {
      // Longer than any command line may be, which comes to light when the vCPUs are being made.
      const options = { backend: "kvm", vcpus: 2, bootArgs: "x".repeat(2040) };
      await expect(startGuest(options, (guest) => guest.reset())).rejects.toThrow("too long");
    }
    await until(() => descriptors(/kvm/).length === 0);
    expect(descriptors(/kvm/)).toEqual([]);
    expect(readFileSync("/proc/self/maps", "utf8")).not.toContain("kvm-vcpu");
  });
});

/** What this process has open that `kind` matches. */
function descriptors(kind: RegExp): string[] {
  return readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      const target = readlinkSync(`/proc/self/fd/${fd}`);
      return kind.test(target) ? [target] : [];
    } catch {
      // The one that lists the directory is gone.
      return [];
    }
  });
}

async function until(condition: () => boolean): Promise<void> {
  const deadline = performance.now() + 3000;
  while (!condition() && performance.now() < deadline) await Bun.sleep(10);
}
