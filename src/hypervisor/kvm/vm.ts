/** One virtual machine of KVM: memory slots, in-kernel interrupt controllers and timer, event descriptors. */

import { SystemError } from "../../platform/errno.ts";
import { ioctlStruct, ioctlValue } from "../../platform/ioctl.ts";
import * as kvm from "./api.ts";
import type { KvmSystem } from "./system.ts";

/** Three pages that Intel processors need for real mode, in the guest's MMIO gap. */
const TSS_ADDRESS = 0xfffb_d000;
/** A signal may interrupt KVM_CREATE_VM; Firecracker tries as often. */
const CREATE_TRIES = 5;
/** A write of 4 bytes, which is how a driver notifies a queue (virtio 1.2, 4.2.2). */
const NOTIFY_BYTES = 4;

export class KvmVm {
  /** `fd` is a descriptor of KVM_CREATE_VM; threads of one process share it. */
  constructor(readonly fd: number) {}

  /** A VM without memory, interrupt controllers and vCPUs. Throws {@link SystemError}. */
  static create(system: KvmSystem): KvmVm {
    const vm = new KvmVm(createVmFd(system.fd));
    ioctlValue(vm.fd, kvm.KVM_SET_TSS_ADDR, TSS_ADDRESS, "KVM_SET_TSS_ADDR");
    return vm;
  }

  /**
   * PIC, I/O APIC and PIT. To be called before there are vCPUs, and after {@link setMemory}: each device on one of
   * KVM's buses, as these are, leaves work to the kernel's SRCU, and a change of the memory slots would wait for that
   * (4 to 10 ms). Throws {@link SystemError}.
   */
  createInterruptControllers(): void {
    ioctlValue(this.fd, kvm.KVM_CREATE_IRQCHIP, 0, "KVM_CREATE_IRQCHIP");
    const pit = new Uint8Array(kvm.PIT_CONFIG_BYTES);
    // A guest that beeps does not leave the kernel for it.
    new DataView(pit.buffer).setUint32(0, kvm.KVM_PIT_SPEAKER_DUMMY, true);
    ioctlStruct(this.fd, kvm.KVM_CREATE_PIT2, pit, "KVM_CREATE_PIT2");
  }

  /** The descriptor of a new vCPU with APIC id `index`. Throws {@link SystemError}. */
  createVcpu(index: number): number {
    return ioctlValue(this.fd, kvm.KVM_CREATE_VCPU, index, "KVM_CREATE_VCPU");
  }

  /**
   * Makes `size` bytes at `address` of this process, whole pages that stay mapped there, guest RAM at `gpa`. Throws
   * {@link SystemError}.
   */
  setMemory(slot: number, gpa: number, size: number, address: number): void {
    const region = new Uint8Array(kvm.MEMORY_REGION_BYTES);
    const view = new DataView(region.buffer);
    view.setUint32(0, slot, true);
    view.setBigUint64(kvm.MEMORY_REGION_GPA, BigInt(gpa), true);
    view.setBigUint64(kvm.MEMORY_REGION_SIZE, BigInt(size), true);
    view.setBigUint64(kvm.MEMORY_REGION_ADDR, BigInt(address), true);
    ioctlStruct(this.fd, kvm.KVM_SET_USER_MEMORY_REGION, region, "KVM_SET_USER_MEMORY_REGION");
  }

  /** Writing eventfd `eventFd` raises an edge on `gsi` without leaving the kernel. Throws {@link SystemError}. */
  setIrqFd(gsi: number, eventFd: number): void {
    const irqfd = new Uint8Array(kvm.IRQFD_BYTES);
    const view = new DataView(irqfd.buffer);
    view.setUint32(0, eventFd, true);
    view.setUint32(4, gsi, true);
    ioctlStruct(this.fd, kvm.KVM_IRQFD, irqfd, "KVM_IRQFD");
  }

  /** A guest's 4-byte write of `value` at `gpa` signals `eventFd` and does not exit. Throws {@link SystemError}. */
  setIoEventFd(gpa: number, value: number, eventFd: number): void {
    const ioeventfd = new Uint8Array(kvm.IOEVENTFD_BYTES);
    const view = new DataView(ioeventfd.buffer);
    view.setBigUint64(0, BigInt(value), true);
    view.setBigUint64(kvm.IOEVENTFD_ADDR, BigInt(gpa), true);
    view.setUint32(kvm.IOEVENTFD_LEN, NOTIFY_BYTES, true);
    view.setInt32(kvm.IOEVENTFD_FD, eventFd, true);
    view.setUint32(kvm.IOEVENTFD_FLAGS, kvm.KVM_IOEVENTFD_FLAG_DATAMATCH, true);
    ioctlStruct(this.fd, kvm.KVM_IOEVENTFD, ioeventfd, "KVM_IOEVENTFD");
  }
}

function createVmFd(systemFd: number): number {
  for (let tries = 1; ; tries++) {
    try {
      return ioctlValue(systemFd, kvm.KVM_CREATE_VM, 0, "KVM_CREATE_VM");
    } catch (error) {
      const interrupted = error instanceof SystemError && error.code === "EINTR";
      if (!interrupted || tries === CREATE_TRIES) throw error;
    }
  }
}
