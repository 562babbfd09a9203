/**
 * What KVM keeps of a virtual machine besides its vCPUs and its memory (Documentation/virt/kvm/api.rst): interrupt
 * controllers, timer and clock. Structures stay KVM's own bytes.
 */

import { ioctlStruct } from "../../platform/ioctl.ts";
import * as kvm from "./api.ts";
import { getStruct, setStruct } from "./structs.ts";

/** KVM's clock of a machine, which kvmclock shows to the guest. */
export interface KvmClock {
  /** Nanoseconds. */
  readonly clock: bigint;
  /** The host's CLOCK_REALTIME of the same moment, in nanoseconds; a kernel before 5.16 does not tell. */
  readonly realtime?: bigint | undefined;
}

export interface KvmVmState {
  /** struct kvm_irqchip of each interrupt controller. */
  readonly picMaster: Uint8Array;
  readonly picSlave: Uint8Array;
  readonly ioapic: Uint8Array;
  /** struct kvm_pit_state2. */
  readonly pit: Uint8Array;
  readonly clock: KvmClock;
}

/** One interrupt controller, by its KVM_IRQCHIP number. Throws {@link SystemError}, as all here. */
export function getIrqchip(vmFd: number, chip: number): Uint8Array {
  const irqchip = new Uint8Array(kvm.IRQCHIP_BYTES);
  new DataView(irqchip.buffer).setUint32(0, chip, true);
  ioctlStruct(vmFd, kvm.KVM_GET_IRQCHIP, irqchip, "KVM_GET_IRQCHIP");
  return irqchip;
}

/** Sets the interrupt controller that `irqchip` names. */
export function setIrqchip(vmFd: number, irqchip: Uint8Array): void {
  setStruct(vmFd, kvm.KVM_SET_IRQCHIP, irqchip, kvm.IRQCHIP_BYTES, "KVM_SET_IRQCHIP");
}

/** struct kvm_pit_state2. */
export function getPit2(vmFd: number): Uint8Array {
  return getStruct(vmFd, kvm.KVM_GET_PIT2, kvm.PIT_STATE2_BYTES, "KVM_GET_PIT2");
}

export function setPit2(vmFd: number, pit: Uint8Array): void {
  setStruct(vmFd, kvm.KVM_SET_PIT2, pit, kvm.PIT_STATE2_BYTES, "KVM_SET_PIT2");
}

export function getClock(vmFd: number): KvmClock {
  const data = getStruct(vmFd, kvm.KVM_GET_CLOCK, kvm.CLOCK_DATA_BYTES, "KVM_GET_CLOCK");
  const view = new DataView(data.buffer);
  const hasRealtime = (view.getUint32(kvm.CLOCK_FLAGS, true) & kvm.KVM_CLOCK_REALTIME) !== 0;
  return {
    clock: view.getBigUint64(0, true),
    realtime: hasRealtime ? view.getBigUint64(kvm.CLOCK_REALTIME, true) : undefined,
  };
}

/**
 * Sets the clock, which goes on from there. `advance`: first by the time that has passed on the host since
 * `clock.realtime`, for which the kernel must be 5.16 or newer.
 */
export function setClock(vmFd: number, { clock, realtime }: KvmClock, advance = false): void {
  const data = new Uint8Array(kvm.CLOCK_DATA_BYTES);
  const view = new DataView(data.buffer);
  view.setBigUint64(0, clock, true);
  if (advance) {
    if (realtime === undefined) throw new RangeError("the clock was read without the host's time");
    view.setUint32(kvm.CLOCK_FLAGS, kvm.KVM_CLOCK_REALTIME, true);
    view.setBigUint64(kvm.CLOCK_REALTIME, realtime, true);
  }
  setStruct(vmFd, kvm.KVM_SET_CLOCK, data, kvm.CLOCK_DATA_BYTES, "KVM_SET_CLOCK");
}

/** All of it, of a machine whose vCPUs are out of the guest. */
export function getVmState(vmFd: number): KvmVmState {
  return {
    pit: getPit2(vmFd),
    clock: getClock(vmFd),
    picMaster: getIrqchip(vmFd, kvm.KVM_IRQCHIP_PIC_MASTER),
    picSlave: getIrqchip(vmFd, kvm.KVM_IRQCHIP_PIC_SLAVE),
    ioapic: getIrqchip(vmFd, kvm.KVM_IRQCHIP_IOAPIC),
  };
}

/**
 * Puts all of it into a machine that has its interrupt controllers and whose vCPUs have their state: an interrupt that
 * the I/O APIC still owes goes to their local APICs at once. `advanceClock`: see {@link setClock}.
 */
export function setVmState(vmFd: number, state: KvmVmState, advanceClock = false): void {
  for (const [irqchip, chip] of [
    [state.picMaster, kvm.KVM_IRQCHIP_PIC_MASTER],
    [state.picSlave, kvm.KVM_IRQCHIP_PIC_SLAVE],
    [state.ioapic, kvm.KVM_IRQCHIP_IOAPIC],
  ] as const) {
    if (irqchip[0] !== chip) throw new RangeError(`interrupt controller ${irqchip[0]} in place of ${chip}`);
    setIrqchip(vmFd, irqchip);
  }
  setClock(vmFd, state.clock, advanceClock);
  // The timer runs from here on. An edge of it that an interrupt controller forgets by being set is never acknowledged,
  // and KVM then waits for that before the next one.
  setPit2(vmFd, state.pit);
}
