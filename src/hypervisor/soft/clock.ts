/**
 * Guest time: the TSC counts host nanoseconds (1 GHz), and kvmclock says so to the guest, which then needs
 * no calibration (Linux Documentation/virt/kvm/x86/msr.rst).
 */
import { GUEST_BASE, TSC_OFFSET } from "./layout.ts";
import type { State } from "./state.ts";

export const TSC_KHZ = 1_000_000;

/** Bits of pvclock_vcpu_time_info.flags. */
const PVCLOCK_TSC_STABLE = 1;

export class Clock {
  /** What WRMSR to IA32_TIME_STAMP_COUNTER added to host time. RDTSC finds it in TSC_OFFSET. */
  private offset = 0n;
  readonly systemTime = { msr: 0n };
  readonly wallClock = { msr: 0n };

  constructor(
    private readonly state: State,
    private readonly ramBytes: number,
  ) {
    this.set(0n);
  }

  /** Host time in ns, which never goes back and no guest can set. */
  host(): bigint {
    return BigInt(Math.floor(performance.now() * 1e6));
  }

  /** The time-stamp counter at a host time. */
  atHost(ns: bigint): bigint {
    return ns + this.offset;
  }

  /** The time-stamp counter. */
  now(): bigint {
    return this.atHost(this.host());
  }

  set(value: bigint): void {
    this.offset = value - this.host();
    this.state.set64(TSC_OFFSET, BigInt.asUintN(64, this.offset));
  }

  /** MSR_KVM_SYSTEM_TIME(_NEW): bit 0 enables, the rest is the physical address of the time structure. */
  writeSystemTime(value: bigint): void {
    this.systemTime.msr = value;
    if ((value & 1n) === 0n) return;
    const at = this.target(value & ~1n, 32);
    if (at === undefined) return;
    const { view } = this.state;
    // An even version means: consistent. Nothing changes later, since the TSC never drifts from host time.
    view.setUint32(at, 2, true);
    view.setUint32(at + 4, 0, true);
    view.setBigUint64(at + 8, 0n, true); // tsc_timestamp
    view.setBigUint64(at + 16, 0n, true); // system_time at that TSC
    view.setUint32(at + 24, 0x8000_0000, true); // tsc_to_system_mul: 2^-32 * 2^31 * 2^shift = 1 ns a tick
    view.setInt8(at + 28, 1); // tsc_shift
    view.setUint8(at + 29, PVCLOCK_TSC_STABLE);
  }

  /** MSR_KVM_WALL_CLOCK(_NEW): wall-clock time at TSC 0. */
  writeWallClock(value: bigint): void {
    this.wallClock.msr = value;
    const at = this.target(value, 12);
    if (at === undefined) return;
    const boot = BigInt(Date.now()) * 1_000_000n - this.now();
    const { view } = this.state;
    view.setUint32(at, 2, true);
    view.setUint32(at + 4, Number(boot / 1_000_000_000n), true);
    view.setUint32(at + 8, Number(boot % 1_000_000_000n), true);
  }

  private target(gpa: bigint, size: number): number | undefined {
    if (gpa + BigInt(size) > BigInt(this.ramBytes)) return undefined;
    return GUEST_BASE + Number(gpa);
  }
}
