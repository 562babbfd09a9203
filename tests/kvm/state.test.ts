/** What KVM keeps of a machine: read, set, and moved to another one, where the guest goes on. */

import { describe, expect, test } from "bun:test";
import * as kvm from "../../src/hypervisor/kvm/api.ts";
import { KvmMachine } from "../../src/hypervisor/kvm/machine.ts";
import { getMsrs, setMsrs } from "../../src/hypervisor/kvm/msrs.ts";
import * as vcpuState from "../../src/hypervisor/kvm/vcpu-state.ts";
import * as vmState from "../../src/hypervisor/kvm/vm-state.ts";
import { cpuFlags, hasVirtualization } from "../../src/platform/cpu-flags.ts";
import { SystemError } from "../../src/platform/errno.ts";
import { at, CC_AE } from "../oracle/asm.ts";
import {
  APIC_LVT_TIMER,
  APIC_TIMER_DIVIDE,
  APIC_TIMER_INITIAL,
  type GuestCode,
  RAX,
  RBX,
  RCX,
  RDX,
} from "./guest-code.ts";
import { noKvm, type TestMachine, withMachine } from "./machine.ts";

const IDT = 0x22_0000;
const COUNTER = 0x23_0000;
const SCRATCH = 0x24_0000;
const VECTOR = 0x41;
const PORT = 0x500;
const STEPS = 12;
const RAM_BYTES = 4 * 2 ** 20;
const CR4_PAE = 1n << 5n;
const CR4_OSFXSR = 1n << 9n;
const IA32_TIME_STAMP_COUNTER = 0x10;
const IA32_TSC_DEADLINE = 0x6e0;
const IA32_LSTAR = 0xc000_0082;

const reason = noKvm();
if (reason !== undefined) console.warn(`state of KVM ${reason}`);

interface Descriptors {
  readonly vcpuFd: number;
  readonly vmFd: number;
  readonly format: vcpuState.StateFormat;
}

function descriptors({ wasm }: TestMachine): Descriptors {
  const machine = new KvmMachine(wasm);
  const vmFd = machine.vm.fd;
  const vcpuFd = machine.vcpuFd(0);
  if (vcpuFd === undefined) throw new Error("there is no vCPU");
  return { vcpuFd, vmFd, format: vcpuState.stateFormat(machine.system, vmFd) };
}

const viewOf = (struct: Uint8Array) => new DataView(struct.buffer, struct.byteOffset, struct.length);

/** Runs `body` with a fresh machine. */
const withState = (body: (parts: Descriptors, machine: TestMachine) => void) =>
  withMachine("kvm", (machine) => body(descriptors(machine), machine));

describe.skipIf(reason !== undefined)("set and read back:", () => {
  /** Changes a structure with `change`, sets it, and expects to read the same. */
  const expectKept = (which: vcpuState.KvmVcpuStruct, change: (view: DataView) => void) =>
    withState(({ vcpuFd }) => {
      const struct = vcpuState.getVcpuStruct(vcpuFd, which);
      const before = struct.slice();
      change(viewOf(struct));
      expect(struct).not.toEqual(before);
      vcpuState.setVcpuStruct(vcpuFd, which, struct);
      expect(vcpuState.getVcpuStruct(vcpuFd, which)).toEqual(struct);
    });

  test("KVM_SET_REGS", () =>
    expectKept("regs", (view) => {
      for (const [name, offset] of Object.entries(kvm.REGS)) {
        view.setBigUint64(offset, name === "rflags" ? 0x202n : 0x1234_5678_0000n + BigInt(offset), true);
      }
    }));

  test("KVM_SET_SREGS", () =>
    expectKept("sregs", (view) => {
      view.setBigUint64(kvm.SREGS.cr2, 0x1234_5000n, true);
      view.setBigUint64(kvm.SREGS_SEGMENT.fs + kvm.SEGMENT_BASE, 0x7f00_1234_5000n, true);
      view.setBigUint64(kvm.SREGS_SEGMENT.gs + kvm.SEGMENT_BASE, 0x7f00_4321_5000n, true);
      view.setBigUint64(kvm.SREGS_IDT, 0x22_0000n, true);
      view.setUint16(kvm.SREGS_IDT + kvm.DTABLE_LIMIT, 0xfff, true);
      view.setBigUint64(kvm.SREGS.cr8, 5n, true);
    }));

  test("KVM_SET_DEBUGREGS", () =>
    expectKept("debugregs", (view) => {
      for (const i of [0, 1, 2, 3]) view.setBigUint64(8 * i, 0x4000n + BigInt(i), true);
    }));

  test("KVM_SET_LAPIC", () =>
    expectKept("lapic", (view) => {
      const [TPR, SVR, LVT_TIMER, MASKED] = [0x80, 0xf0, 0x320, 0x1_0000];
      view.setUint32(SVR, 0x1ff, true);
      view.setUint32(TPR, 0x20, true);
      view.setUint32(LVT_TIMER, MASKED | VECTOR, true);
      // The processor priority follows from the task's.
      view.setUint32(0xa0, 0x20, true);
    }));

  test("KVM_SET_VCPU_EVENTS", () =>
    expectKept("vcpuEvents", (view) => {
      const NMI_MASKED = 14;
      view.setUint8(NMI_MASKED, 1);
    }));

  test("KVM_SET_XCRS", () =>
    withState(({ vcpuFd }) => {
      const xcrs = vcpuState.getVcpuStruct(vcpuFd, "xcrs");
      const [count, X87, SSE] = [viewOf(xcrs).getUint32(0, true), 1n, 2n];
      // A guest without XSAVE has none.
      if (count > 0) viewOf(xcrs).setBigUint64(16, X87 | SSE, true);
      vcpuState.setVcpuStruct(vcpuFd, "xcrs", xcrs);
      expect(vcpuState.getVcpuStruct(vcpuFd, "xcrs")).toEqual(xcrs);
    }));

  test("KVM_SET_XSAVE, and no more or less than this host's area", () =>
    withState(({ vcpuFd, format }) => {
      const [FCW, XMM0, XSTATE_BV] = [0, 160, 512];
      const area = vcpuState.getXsave(vcpuFd, format);
      expect(area).toHaveLength(format.xsaveBytes);
      const view = viewOf(area);
      view.setUint16(FCW, 0x27f, true);
      for (let i = 0; i < 256; i++) view.setUint8(XMM0 + i, i ^ 0x5a);
      view.setBigUint64(XSTATE_BV, view.getBigUint64(XSTATE_BV, true) | 3n, true);
      vcpuState.setXsave(vcpuFd, area, format);
      const after = vcpuState.getXsave(vcpuFd, format);
      expect(viewOf(after).getUint16(FCW, true)).toBe(0x27f);
      expect(after.subarray(XMM0, XMM0 + 256)).toEqual(area.subarray(XMM0, XMM0 + 256));

      // The area of a host with fewer registers.
      vcpuState.setXsave(vcpuFd, area.subarray(0, 576), format);
      expect(vcpuState.getXsave(vcpuFd, format).subarray(XMM0, XMM0 + 256)).toEqual(
        area.subarray(XMM0, XMM0 + 256),
      );
      expect(() => vcpuState.setXsave(vcpuFd, new Uint8Array(format.xsaveBytes + 4), format)).toThrow(
        "it was saved on another kind of host",
      );
    }));

  test("KVM_SET_MP_STATE", () =>
    withState(({ vcpuFd }) => {
      expect(vcpuState.getMpState(vcpuFd)).toBe(kvm.KVM_MP_STATE_RUNNABLE);
      vcpuState.setMpState(vcpuFd, kvm.KVM_MP_STATE_HALTED);
      expect(vcpuState.getMpState(vcpuFd)).toBe(kvm.KVM_MP_STATE_HALTED);
      expect(() => vcpuState.setMpState(vcpuFd, 77)).toThrow(SystemError);
    }));

  test("KVM_SET_MSRS", () =>
    withState(({ vcpuFd, format }) => {
      const entries = [
        { index: 0x175, data: 0xffff_8000_1111_0000n }, // IA32_SYSENTER_ESP
        { index: 0x1a0, data: 1n }, // IA32_MISC_ENABLE
        { index: 0x277, data: 0x0606_0606_0606_0606n }, // IA32_PAT
        { index: 0x2ff, data: 0xc06n }, // IA32_MTRR_DEF_TYPE
        { index: 0xc000_0081, data: 0x23_0010_0000_0000n }, // IA32_STAR
        { index: IA32_LSTAR, data: 0xffff_8000_2222_0000n },
        { index: 0xc000_0102, data: 0x7fff_1234_5678n }, // IA32_KERNEL_GS_BASE
      ];
      setMsrs(vcpuFd, entries);
      const indices = entries.map(({ index }) => index);
      expect(getMsrs(vcpuFd, indices)).toEqual(entries);
      // All of these belong to a vCPU's state.
      const saved = vcpuState.getVcpuState(vcpuFd, format).msrs;
      for (const entry of entries) expect(saved).toContainEqual(entry);
    }));

  // Without an offset of the TSC, which hardware gives, a guest has the host's.
  test.skipIf(!hasVirtualization(cpuFlags()))("KVM_SET_MSRS: the TSC goes on from what was set", () =>
    withState(({ vcpuFd }) => {
      const data = 1n << 50n;
      setMsrs(vcpuFd, [{ index: IA32_TIME_STAMP_COUNTER, data }]);
      expect(getMsrs(vcpuFd, [IA32_TIME_STAMP_COUNTER])[0]!.data).toBeGreaterThanOrEqual(data);
    }),
  );

  test("an MSR that KVM does not have is left out, one that it refuses is named", () =>
    withState(({ vcpuFd }) => {
      const none = 0x8765_4321;
      const lstar = { index: IA32_LSTAR, data: 0x1000n };
      setMsrs(vcpuFd, [lstar]);
      expect(getMsrs(vcpuFd, [none, IA32_LSTAR, none])).toContainEqual(lstar);
      const notCanonical = { index: IA32_LSTAR, data: 0x8000_0000_0000_0000n };
      expect(() => setMsrs(vcpuFd, [lstar, notCanonical])).toThrow(
        "KVM does not take 0x8000000000000000 for MSR 0xc0000082",
      );
    }));

  test("KVM_GET_CPUID2 gives what was set", () =>
    withState(({ vcpuFd }) => {
      const cpuid = vcpuState.getCpuid2(vcpuFd);
      expect(cpuid.find(({ function: leaf }) => leaf === 0)!.eax).toBeGreaterThan(0);
      const changed = cpuid.map((entry) => (entry.function === 0 ? { ...entry, ebx: 0x6c_6c_61_20 } : entry));
      vcpuState.setCpuid2(vcpuFd, changed);
      expect(vcpuState.getCpuid2(vcpuFd)).toEqual(changed);
    }));

  test("KVM_GET_TSC_KHZ, and the same frequency set again", () =>
    withState(({ vcpuFd }) => {
      const khz = vcpuState.getTscKhz(vcpuFd);
      if (khz === undefined) return;
      vcpuState.setTscKhz(vcpuFd, khz);
      expect(vcpuState.getTscKhz(vcpuFd)).toBe(khz);
    }));

  test("KVM_SET_CLOCK, which goes on from there, or from there and the time since", () =>
    withState(({ vmFd }) => {
      const clock = 10n ** 15n;
      vmState.setClock(vmFd, { clock });
      const { clock: now, realtime } = vmState.getClock(vmFd);
      expect(now).toBeGreaterThanOrEqual(clock);
      expect(now).toBeLessThan(2n * clock);
      if (realtime === undefined) return;
      const hour = 3600n * 10n ** 9n;
      vmState.setClock(vmFd, { clock, realtime: realtime - hour }, true);
      expect(vmState.getClock(vmFd).clock).toBeGreaterThanOrEqual(clock + hour);
      expect(() => vmState.setClock(vmFd, { clock }, true)).toThrow(RangeError);
    }));

  test("KVM_SET_PIT2", () =>
    withState(({ vmFd }) => {
      const pit = vmState.getPit2(vmFd);
      // Channel 2's count: it has no interrupt that would move it on.
      viewOf(pit).setUint32(48, 0x1234, true);
      vmState.setPit2(vmFd, pit);
      expect(viewOf(vmState.getPit2(vmFd)).getUint32(48, true)).toBe(0x1234);
    }));

  test.each([
    ["PIC master", kvm.KVM_IRQCHIP_PIC_MASTER, 8 + 4],
    ["PIC slave", kvm.KVM_IRQCHIP_PIC_SLAVE, 8 + 4],
    // Redirection entry 5 behind base address, register select, id, IRR and padding.
    ["I/O APIC", kvm.KVM_IRQCHIP_IOAPIC, 8 + 24 + 5 * 8],
  ])("KVM_SET_IRQCHIP: %s", (_name, chip, offset) =>
    withState(({ vmFd }) => {
      const irqchip = vmState.getIrqchip(vmFd, chip);
      irqchip[offset] = 0xa7;
      vmState.setIrqchip(vmFd, irqchip);
      expect(vmState.getIrqchip(vmFd, chip)).toEqual(irqchip);
    }),
  );

  test("a structure of another size, or of another chip, is refused before KVM reads beyond it", () =>
    withState(({ vcpuFd, vmFd }) => {
      for (const which of ["regs", "sregs", "xcrs", "debugregs", "lapic", "vcpuEvents"] as const) {
        const struct = vcpuState.getVcpuStruct(vcpuFd, which);
        expect(() => vcpuState.setVcpuStruct(vcpuFd, which, struct.subarray(1))).toThrow(RangeError);
      }
      const state = vmState.getVmState(vmFd);
      for (const part of ["pit", "ioapic"] as const) {
        const damaged = { ...state, [part]: state[part].slice(0, 20) };
        expect(() => vmState.setVmState(vmFd, damaged)).toThrow(RangeError);
      }
      expect(() => vmState.setVmState(vmFd, { ...state, ioapic: state.picMaster })).toThrow(
        "interrupt controller 0 in place of 2",
      );
    }));
});

/** All of a machine: two of them with the same are the same. */
interface Snapshot {
  readonly memory: Uint8Array;
  readonly vcpu: vcpuState.KvmVcpuState;
  readonly vm: vmState.KvmVmState;
}

function take(machine: TestMachine): Snapshot {
  const { vcpuFd, vmFd, format } = descriptors(machine);
  const vcpu = vcpuState.getVcpuState(vcpuFd, format);
  const memory = machine.memory.slice(0, machine.memory.size).slice();
  return structuredClone({ memory, vcpu, vm: vmState.getVmState(vmFd) });
}

function put(machine: TestMachine, { memory, vcpu, vm }: Snapshot): void {
  const { vcpuFd, vmFd, format } = descriptors(machine);
  machine.memory.write(0, memory);
  vcpuState.setVcpuState(vcpuFd, vcpu, format);
  vmState.setVmState(vmFd, vm);
}

/** Timers that count at COUNTER by interrupts: how each is started, and what its handler does besides. */
const TIMERS: Readonly<Record<string, { start(guest: GuestCode): void; again?(guest: GuestCode): void }>> = {
  "periodic LAPIC timer": {
    start(guest) {
      guest.poke(APIC_TIMER_DIVIDE, 0xb);
      guest.poke(APIC_LVT_TIMER, (1 << 17) | VECTOR);
      // 1 ms at the 1 GHz of KVM's bus.
      guest.poke(APIC_TIMER_INITIAL, 1_000_000);
    },
  },
  "TSC deadline": {
    start(guest) {
      guest.poke(APIC_LVT_TIMER, (2 << 17) | VECTOR);
      armDeadline(guest);
    },
    again: armDeadline,
  },
  PIT: {
    start(guest) {
      guest.routeGsi(0, VECTOR);
      guest.outPort(0x43, 1, 0x34);
      guest.outPort(0x40, 1, 2386 & 0xff);
      guest.outPort(0x40, 1, 2386 >> 8);
    },
  },
};

/** IA32_TSC_DEADLINE: two million cycles from now. */
function armDeadline(guest: GuestCode): void {
  guest.rdtsc();
  guest.addImm(RAX, 2_000_000);
  guest.movImm(RCX, IA32_TSC_DEADLINE);
  const fits = `deadline ${guest.size}`;
  // A carry out of the low half is left to the high one.
  guest.mov(RBX, RAX);
  guest.shr(RBX, 32);
  guest.add(RDX, RBX);
  guest.label(fits);
  guest.wrmsr();
}

/** Counts STEPS interrupts, with a word through PORT after each, and then shows what it has kept in registers. */
function countingGuest(guest: GuestCode, timer: keyof typeof TIMERS): void {
  guest.enableApic();
  guest.loadIdt(IDT, VECTOR, "handler");
  guest.poke(SCRATCH, 0x1357_9bdf);
  guest.movImm(RBX, SCRATCH);
  guest.raw(0xf3, 0x0f, 0x6f, 0x2b); // movdqu xmm5, [rbx]
  guest.movImm(RCX, IA32_LSTAR);
  guest.movImm(RDX, 0x77);
  guest.movImm(RAX, 0x1234_5678);
  guest.wrmsr();
  TIMERS[timer]!.start(guest);
  for (let step = 1; step <= STEPS; step++) {
    guest.waitForCount(COUNTER, step);
    guest.outPort(PORT, 4, step);
  }
  guest.movImm(RBX, SCRATCH + 64);
  guest.raw(0xf3, 0x0f, 0x7f, 0x2b); // movdqu [rbx], xmm5
  guest.load32(RAX, at(RBX));
  guest.movImm(RDX, PORT);
  guest.outDx(4);
  guest.movImm(RCX, IA32_LSTAR);
  guest.raw(0x0f, 0x32); // rdmsr
  guest.movImm(RDX, PORT);
  guest.outDx(4);
  guest.finish();
  guest.label("handler");
  for (const register of [RAX, RBX, RCX, RDX]) guest.push(register);
  guest.movImm(RBX, COUNTER);
  guest.lockIncrement();
  TIMERS[timer]!.again?.(guest);
  guest.poke(0xfee0_00b0, 0);
  for (const register of [RDX, RCX, RBX, RAX]) guest.pop(register);
  guest.iretq();
}

describe.skipIf(reason !== undefined)("a guest whose machine is taken down and made anew goes on", () => {
  test.each(Object.keys(TIMERS))(
    "%s, after each of its steps",
    async (timer) => {
      const expected = [...Array.from({ length: STEPS }, (_, i) => i + 1), 0x1357_9bdf, 0x1234_5678];
      const seen: number[] = [];
      let snapshot: Snapshot | undefined;
      // A new machine for every step, the last one to the end.
      for (let stopAt = 1; stopAt <= STEPS + 1; stopAt++) {
        await withMachine("kvm", (machine) => {
          machine.pio.insert(PORT, 4, {
            read: () => 0,
            write(_offset, _size, value) {
              seen.push(value);
              if (value === stopAt) machine.backend.requestStop(machine.wasm);
            },
          });
          if (snapshot === undefined) {
            const cr4 = CR4_PAE | CR4_OSFXSR;
            expect(machine.run((guest) => countingGuest(guest, timer), { cr4 })).toEqual({ kind: "stopped" });
          } else {
            put(machine, snapshot);
            expect(machine.resume()).toEqual({ kind: "stopped" });
          }
          snapshot = take(machine);
        });
      }
      expect(seen).toEqual(expected);
    },
    30_000,
  );

  test("one that was halted is woken by its interrupt", async () => {
    let snapshot: Snapshot | undefined;
    await withMachine("kvm", (machine) => {
      machine.pio.insert(PORT, 4, {
        read: () => 0,
        write: () => machine.backend.requestStop(machine.wasm),
      });
      machine.run((guest) => {
        guest.enableApic();
        guest.loadIdt(IDT, VECTOR, "handler");
        guest.routeGsi(5, VECTOR);
        guest.sti();
        guest.outPort(PORT, 4, 0);
        guest.label("sleep");
        guest.hlt();
        guest.movImm(RBX, COUNTER);
        guest.load32(RAX, at(RBX));
        guest.cmpImm(RAX, 1);
        guest.jcc(CC_AE, "done");
        guest.jmp("sleep");
        guest.label("done");
        guest.finish();
        guest.countingHandler("handler", COUNTER);
      });
      const { vcpu, ...rest } = take(machine);
      // Behind the HLT, as KVM leaves it.
      const regs = vcpu.regs.slice();
      const rip = viewOf(regs).getBigUint64(kvm.REGS.rip, true);
      expect(machine.memory.readU8(Number(rip))).toBe(0xf4);
      viewOf(regs).setBigUint64(kvm.REGS.rip, rip + 1n, true);
      snapshot = { ...rest, vcpu: { ...vcpu, regs, mpState: kvm.KVM_MP_STATE_HALTED } };
    });
    await withMachine("kvm", (machine) => {
      put(machine, snapshot!);
      machine.irqLine(5).trigger();
      expect(machine.resume()).toEqual({ kind: "stopped" });
      expect(machine.memory.readU32(COUNTER)).toBe(1);
    });
  });

  test("a second vCPU that waits for its startup IPI waits for it there too", async () => {
    /** States of both vCPUs of a new machine, after `body`. */
    const both = (body: (vcpus: readonly number[], format: vcpuState.StateFormat) => void) => {
      const machine = new KvmMachine(KvmMachine.create(RAM_BYTES, 2).memory);
      try {
        const format = vcpuState.stateFormat(machine.system, machine.vm.fd);
        const vcpus = [0, 1].map((index) => {
          const fd = machine.createVcpu(index);
          vcpuState.setCpuid2(fd, machine.system.supportedCpuid());
          return fd;
        });
        body(vcpus, format);
        return vcpus.map((fd) => vcpuState.getVcpuState(fd, format));
      } finally {
        machine.close();
      }
    };
    const states = both(([, second]) => {
      setMsrs(second!, [{ index: IA32_LSTAR, data: 0x2222n }]);
    });
    expect(states.map(({ mpState }) => mpState)).toEqual([
      kvm.KVM_MP_STATE_RUNNABLE,
      kvm.KVM_MP_STATE_UNINITIALIZED,
    ]);
    const moved = both((vcpus, format) => {
      for (const [i, fd] of vcpus.entries()) vcpuState.setVcpuState(fd, states[i]!, format);
    });
    for (const [i, { mpState, regs, sregs, lapic, msrs, cpuid }] of moved.entries()) {
      const before = states[i]!;
      expect({ mpState, regs, sregs, lapic, cpuid }).toEqual({
        mpState: before.mpState,
        regs: before.regs,
        sregs: before.sregs,
        lapic: before.lapic,
        cpuid: before.cpuid,
      });
      const lstar = msrs.find(({ index }) => index === IA32_LSTAR);
      expect(lstar).toEqual(before.msrs.find(({ index }) => index === IA32_LSTAR));
    }
  });
});
