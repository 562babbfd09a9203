/** One vCPU on KVM: its set-up and the loop that runs the guest and serves its exits. */

import { GuestMemory } from "../../memory/guest-memory.ts";
import { SystemError } from "../../platform/errno.ts";
import { ERRNO } from "../../platform/errno-numbers.ts";
import { ioctlStruct, tryIoctlValue } from "../../platform/ioctl.ts";
import type { BootRegisters, VcpuEnd } from "../types.ts";
import * as kvm from "./api.ts";
import { type CpuidFilter, encodeCpuid, guestCpuid } from "./cpuid.ts";
import { describeEnd, type ExitContext } from "./exits.ts";
import { KvmMachine } from "./machine.ts";
import { setBootMsrs } from "./msrs.ts";
import { setBootRegisters, setLocalInterrupts } from "./registers.ts";

const { EINTR, EAGAIN } = ERRNO;
const { IO, MMIO, INTR } = kvm.KVM_EXIT;

/** Ports or memory-mapped registers of the machine. Sizes are 1, 2 or 4 bytes; values are unsigned. */
export interface KvmBus {
  read(address: number, size: number): number;
  write(address: number, size: number, value: number): void;
}

export interface KvmVcpuOptions {
  readonly memory: WebAssembly.Memory;
  /** Number and APIC id of this vCPU, from 0. */
  readonly index: number;
  /** Two vCPUs are the threads of one core. */
  readonly smt?: boolean | undefined;
  readonly pio: KvmBus;
  readonly mmio: KvmBus;
  /** Called on the vCPU's thread when it has left the guest for a pause. */
  readonly onPaused: () => void;
  /** Last change to the guest's CPUID. */
  readonly cpuidFilter?: CpuidFilter | undefined;
}

export class KvmVcpu {
  private readonly machine: KvmMachine;
  private readonly memory: GuestMemory;
  private readonly fd: number;
  private readonly exits = new Map<number, number>();
  private interrupted = 0;

  /**
   * Creates the vCPU and gives it CPUID, MSRs and local interrupts; or takes over, as it is, one that another thread has
   * created and left. Throws {@link SystemError}.
   */
  constructor(private readonly options: KvmVcpuOptions) {
    const { memory, index, smt, cpuidFilter } = options;
    const machine = new KvmMachine(memory);
    this.machine = machine;
    this.memory = new GuestMemory(machine.layout);
    const left = machine.vcpuFd(index);
    this.fd = left ?? machine.createVcpu(index);
    if (left !== undefined) return;

    const { system } = machine;
    const cpuid = guestCpuid(system.supportedCpuid(), {
      index,
      count: machine.vcpuCount,
      smt,
      tscDeadline: system.extension(kvm.KVM_CAP_TSC_DEADLINE_TIMER) > 0,
    });
    const struct = encodeCpuid(cpuidFilter === undefined ? cpuid : cpuidFilter(cpuid));
    ioctlStruct(this.fd, kvm.KVM_SET_CPUID2, struct, "KVM_SET_CPUID2");
    setBootMsrs(this.fd);
    setLocalInterrupts(this.fd);
  }

  /** For the boot vCPU. The others wait in {@link run} for a startup IPI. Throws {@link SystemError}. */
  setBootRegisters(registers: BootRegisters): void {
    setBootRegisters(this.fd, registers);
  }

  /** Exits to this process so far, by reason, and how often KVM_RUN was interrupted. */
  stats(): Record<string, number> {
    const names = Object.entries(kvm.KVM_EXIT).map(([name, reason]) => [reason, `exits: ${name}`] as const);
    const nameOf = new Map<number, string>(names);
    const counts = [...this.exits].map(
      ([reason, n]) => [nameOf.get(reason) ?? `exits: ${reason}`, n] as const,
    );
    return Object.fromEntries([...counts, ["interrupted", this.interrupted]]);
  }

  /** Runs the guest until it ends or `KvmMachine.requestStop` is called. Blocks the thread. */
  run(): VcpuEnd {
    const end = this.runUntil(() => false);
    if (end === undefined) throw new Error("a vCPU left the guest without a reason");
    return end;
  }

  /**
   * Does the same, and returns undefined when `leave`, which is asked after each exit and (`interrupted`) after each
   * signal, says so. The guest goes on with the next call, on this thread or another.
   */
  runUntil(leave: (interrupted: boolean) => boolean): VcpuEnd | undefined {
    return this.machine.withRunArea(this.options.index, (area) => this.loop(area, leave));
  }

  private loop(area: Uint8Array, leave: (interrupted: boolean) => boolean): VcpuEnd | undefined {
    const { fd, machine, memory } = this;
    const run = new DataView(area.buffer, area.byteOffset, area.length);
    const context: ExitContext = { vcpuFd: fd, memory, run };
    const onPaused = () => {
      // Keeps a guest with KVM's clock from taking the pause for a lock-up; one without it makes this fail.
      tryIoctlValue(fd, kvm.KVM_KVMCLOCK_CTRL, 0);
      this.options.onPaused();
    };
    if (!machine.mayRun(area, onPaused)) return { kind: "stopped" };
    for (;;) {
      const result = tryIoctlValue(fd, kvm.KVM_RUN, 0);
      if (result < 0) {
        if (result !== -EINTR && result !== -EAGAIN) throw new SystemError("ioctl(KVM_RUN)", -result);
        // The runtime signals its threads too, so this need not be a request.
        this.interrupted++;
        if (!machine.mayRun(area, onPaused)) return { kind: "stopped" };
        if (leave(true)) return undefined;
        continue;
      }
      const reason = run.getUint32(kvm.RUN_EXIT_REASON, true);
      this.exits.set(reason, (this.exits.get(reason) ?? 0) + 1);
      if (reason === IO) servePio(run, this.options.pio);
      else if (reason === MMIO) serveMmio(run, this.options.mmio);
      else if (reason !== INTR) return describeEnd(reason, context);
      if (leave(false)) return undefined;
    }
  }
}

/** KVM_EXIT_IO: `count` accesses of one width to one port, one behind the other in the area. */
export function servePio(run: DataView, bus: KvmBus): void {
  const size = run.getUint8(kvm.RUN_IO_SIZE);
  const port = run.getUint16(kvm.RUN_IO_PORT, true);
  const out = run.getUint8(kvm.RUN_IO_DIRECTION) === kvm.KVM_EXIT_IO_OUT;
  const start = run.getUint32(kvm.RUN_IO_DATA_OFFSET, true);
  const end = start + size * run.getUint32(kvm.RUN_IO_COUNT, true);
  for (let at = start; at < end; at += size) {
    if (out) bus.write(port, size, getValue(run, at, size));
    else setValue(run, at, size, bus.read(port, size));
  }
}

/**
 * KVM_EXIT_MMIO: 1 to 8 bytes. Eight go as two times four, low half first; other lengths, which come of an access
 * across a page boundary, as the largest parts that a bus knows.
 */
export function serveMmio(run: DataView, bus: KvmBus): void {
  const length = Math.min(run.getUint32(kvm.RUN_MMIO_LEN, true), 8);
  const gpa =
    run.getUint32(kvm.RUN_MMIO_PHYS_ADDR, true) + run.getUint32(kvm.RUN_MMIO_PHYS_ADDR + 4, true) * 2 ** 32;
  const write = run.getUint8(kvm.RUN_MMIO_IS_WRITE) !== 0;
  for (let done = 0; done < length; ) {
    const left = length - done;
    const size = left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const at = kvm.RUN_MMIO_DATA + done;
    if (write) bus.write(gpa + done, size, getValue(run, at, size));
    else setValue(run, at, size, bus.read(gpa + done, size));
    done += size;
  }
}

function getValue(view: DataView, at: number, size: number): number {
  return size === 1 ? view.getUint8(at) : size === 2 ? view.getUint16(at, true) : view.getUint32(at, true);
}

function setValue(view: DataView, at: number, size: number, value: number): void {
  if (size === 1) view.setUint8(at, value);
  else if (size === 2) view.setUint16(at, value, true);
  else view.setUint32(at, value, true);
}
