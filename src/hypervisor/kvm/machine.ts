/**
 * One machine on KVM as all its threads hold it: guest RAM below the MMIO gap and, below that in the same memory where no
 * guest address leads, the words that the threads share. RAM above the gap is a mapping of its own, which they name.
 * Descriptors are the process's, so their numbers are all it takes.
 */

import type { IrqLine } from "../../devices/types.ts";
import { type GuestMemoryLayout, MMIO_GAP_START, memoryRegions } from "../../memory/guest-memory.ts";
import { SystemError } from "../../platform/errno.ts";
import { EventFd } from "../../platform/eventfd.ts";
import { closeFile } from "../../platform/files.ts";
import { addressOf, Mapping, memoryAt, misalignment, reserveMemory, unmapAt } from "../../platform/memory.ts";
import { currentThread, installKickHandler, kickThread } from "../../platform/signals.ts";
import { RUN_IMMEDIATE_EXIT } from "./api.ts";
import { KvmSystem } from "./system.ts";
import { KvmVm } from "./vm.ts";

/** The MP table and xAPIC ids allow more; Firecracker has this limit. */
export const KVM_MAX_VCPUS = 32;
const GSIS = 24;

/** Shared words. A descriptor is kept plus one, so that 0 means none. */
const W_REQUEST = 0;
const W_SYSTEM = 1;
const W_VM = 2;
const W_VCPU_COUNT = 3;
const W_RUN_BYTES = 4;
/** Number of descriptors in the list from W_OWNED on. */
const W_OWNED_COUNT = 5;
const W_BASE = 6;
/** Counts pauses. */
const W_PAUSES = 7;
const W_IRQ = 32;
const W_VCPU_FD = 64;
const W_VCPU_THREAD = 96;
/** Address of each vCPU's kvm_run area, 0 while there is none: two words, a double. */
const W_RUN_AREA = 128;
/** Address and size of the mapping with RAM above the MMIO gap, 0 if there is none: doubles. */
const W_HIGH = 192;
const W_RAM_BYTES = 196;
const W_OWNED = 200;
/** Interrupts, vCPUs, and 32 queues of each of 19 devices. */
const MAX_OWNED = 1024;
const WORDS = W_OWNED + MAX_OWNED;

/** What is asked of the vCPUs ({@link W_REQUEST}): a stop, which is final, or by a positive number the n-th pause. */
const REQUEST_NONE = 0;
const REQUEST_STOP = -1;

const WASM_PAGE = 65_536;
const PAGE = 4096;
/** A guest page table entry of 2 MiB can only be one of the host's if both addresses are multiples of it. */
const HUGE_PAGE = 2 ** 21;
/** A process has 2^47 bytes of addresses. */
const RAM_LIMIT = 2 ** 46;

/** Of a machine: its memory, where guest RAM begins in it, and where the rest of guest RAM lies. */
export interface KvmMemory {
  readonly memory: WebAssembly.Memory;
  readonly base: number;
  readonly high?: number | undefined;
}

export class KvmMachine {
  private readonly words: Int32Array;
  private readonly runAreas: Float64Array;
  /** Address and size. */
  private readonly high: Float64Array;
  private readonly ramBytes: Float64Array;

  /** Takes hold, on any thread, of a machine made by {@link create}. */
  constructor(readonly memory: WebAssembly.Memory) {
    this.words = new Int32Array(memory.buffer, 0, WORDS);
    const doubles = (at: number, count: number) =>
      new Float64Array(memory.buffer, at * Int32Array.BYTES_PER_ELEMENT, count);
    this.runAreas = doubles(W_RUN_AREA, KVM_MAX_VCPUS);
    this.high = doubles(W_HIGH, 2);
    this.ramBytes = doubles(W_RAM_BYTES, 1);
  }

  /**
   * A machine with zeroed RAM and its slots set, without vCPUs. `ramBytes` is whole pages. Throws `KvmUnavailable`,
   * {@link RangeError} if the memory cannot be had, or {@link SystemError}.
   */
  static create(ramBytes: number, vcpus: number): KvmMemory {
    if (!(ramBytes > 0 && ramBytes <= RAM_LIMIT)) {
      throw new RangeError(`guest memory of ${ramBytes} bytes: 1 to ${RAM_LIMIT} are possible`);
    }
    if (vcpus < 1 || vcpus > KVM_MAX_VCPUS) {
      throw new RangeError(`${vcpus} vCPUs: 1 to ${KVM_MAX_VCPUS} are possible`);
    }
    const lowBytes = Math.min(ramBytes, MMIO_GAP_START);
    const pages = Math.ceil((WASM_PAGE + HUGE_PAGE + lowBytes) / WASM_PAGE);
    const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
    const bytes = new Uint8Array(memory.buffer);
    const above = misalignment(bytes, HUGE_PAGE);
    if (above % PAGE !== 0) throw new Error("the runtime's WebAssembly memory is not page aligned");
    const base = HUGE_PAGE - above >= WASM_PAGE ? HUGE_PAGE - above : 2 * HUGE_PAGE - above;

    installKickHandler();
    const machine = new KvmMachine(memory);
    try {
      const system = KvmSystem.open();
      machine.words[W_SYSTEM] = machine.own(system.fd) + 1;
      const vm = KvmVm.create(system);
      machine.words[W_VM] = machine.own(vm.fd) + 1;
      machine.words[W_RUN_BYTES] = system.vcpuMmapSize;
      machine.words[W_VCPU_COUNT] = vcpus;
      machine.words[W_BASE] = base;
      machine.ramBytes[0] = ramBytes;
      machine.setMemory(vm, addressOf(bytes) + base);
      vm.createInterruptControllers();
    } catch (error) {
      machine.close();
      throw error;
    }
    return { memory, base, high: machine.layout.high };
  }

  /** Makes RAM above the MMIO gap and tells KVM of all; `low` is the address of the rest. */
  private setMemory(vm: KvmVm, low: number): void {
    const [first, ...rest] = memoryRegions(this.ramBytes[0]!);
    try {
      vm.setMemory(0, 0, first!.size, low);
      const highBytes = this.ramBytes[0]! - first!.size;
      if (highBytes === 0) return;
      let address = reserveMemory(highBytes, HUGE_PAGE);
      this.high[0] = address;
      this.high[1] = highBytes;
      for (const [i, { gpa, size }] of rest.entries()) {
        vm.setMemory(i + 1, gpa, size, address);
        address += size;
      }
    } catch (error) {
      // EINVAL: a slot of KVM ends at 8 TiB.
      if (!(error instanceof SystemError && ["ENOMEM", "EINVAL"].includes(error.code))) throw error;
      throw new RangeError(`guest memory of ${this.ramBytes[0]} bytes: ${error.message}`, { cause: error });
    }
  }

  /** Guest RAM, for `GuestMemory`. */
  get layout(): GuestMemoryLayout {
    const { buffer } = this.memory;
    if (!(buffer instanceof SharedArrayBuffer)) throw new Error("guest memory is not shared");
    const high = this.high[0] === 0 ? undefined : this.high[0];
    return { buffer, base: this.words[W_BASE]!, size: this.ramBytes[0]!, high };
  }

  get system(): KvmSystem {
    return new KvmSystem(this.words[W_SYSTEM]! - 1);
  }

  get vm(): KvmVm {
    return new KvmVm(this.words[W_VM]! - 1);
  }

  get vcpuCount(): number {
    return this.words[W_VCPU_COUNT]!;
  }

  /** Creates vCPU `index`, once, and returns its descriptor. Throws {@link SystemError}. */
  createVcpu(index: number): number {
    const fd = this.own(this.vm.createVcpu(index));
    Atomics.store(this.words, W_VCPU_FD + index, fd + 1);
    return fd;
  }

  /** The descriptor of vCPU `index`, or undefined if it has not been created. */
  vcpuFd(index: number): number | undefined {
    const fd = Atomics.load(this.words, W_VCPU_FD + index);
    return fd === 0 ? undefined : fd - 1;
  }

  /**
   * Runs `body` on the calling thread with the kvm_run area of vCPU `index`; requests reach it from then on. The
   * area is gone afterwards: while it is mapped, the VM stays in the kernel.
   */
  withRunArea<T>(index: number, body: (run: Uint8Array) => T): T {
    const fd = this.words[W_VCPU_FD + index]! - 1;
    const area = Mapping.shared(fd, this.words[W_RUN_BYTES]!);
    this.runAreas[index] = area.at;
    Atomics.store(this.words, W_VCPU_THREAD + index, currentThread());
    try {
      return body(area.bytes);
    } finally {
      Atomics.store(this.words, W_VCPU_THREAD + index, 0);
      this.runAreas[index] = 0;
      area.unmap();
    }
  }

  /** Any thread: makes every vCPU leave the guest for good. */
  requestStop(): void {
    Atomics.store(this.words, W_REQUEST, REQUEST_STOP);
    Atomics.notify(this.words, W_REQUEST);
    this.kick();
  }

  /** Any thread: makes every vCPU leave the guest until {@link requestResume}. */
  requestPause(): void {
    // Numbered, so that a vCPU which still sleeps in one pause when the next begins tells the two apart.
    const pause = Atomics.add(this.words, W_PAUSES, 1) + 1;
    if (Atomics.compareExchange(this.words, W_REQUEST, REQUEST_NONE, pause) === REQUEST_NONE) this.kick();
  }

  /** Any thread: ends a pause. */
  requestResume(): void {
    const request = Atomics.load(this.words, W_REQUEST);
    if (request === REQUEST_STOP) return;
    Atomics.compareExchange(this.words, W_REQUEST, request, REQUEST_NONE);
    Atomics.notify(this.words, W_REQUEST);
  }

  /**
   * A request reaches a vCPU wherever it is, once it is in {@link withRunArea}: `immediate_exit` makes the next
   * KVM_RUN return at once, and the signal ends one that was past its look at that. Its mark is made before, so that
   * the vCPU sees it when KVM_RUN has returned EINTR.
   */
  private kick(): void {
    for (let index = 0; index < this.vcpuCount; index++) {
      const fd = Atomics.load(this.words, W_VCPU_FD + index) - 1;
      const thread = Atomics.load(this.words, W_VCPU_THREAD + index);
      if (fd < 0 || thread === 0) continue;
      if (thread === currentThread()) {
        // In an exit: the area stays as long as this takes, and there is no system call to interrupt.
        const own = memoryAt(this.runAreas[index]!, this.words[W_RUN_BYTES]!);
        Atomics.store(own, RUN_IMMEDIATE_EXIT, 1);
        continue;
      }
      const area = Mapping.shared(fd, this.words[W_RUN_BYTES]!);
      Atomics.store(area.bytes, RUN_IMMEDIATE_EXIT, 1);
      area.unmap();
      kickThread(thread);
    }
  }

  /**
   * vCPU thread, before the first KVM_RUN and after one that returned EINTR: waits out a pause, of which `onPaused`
   * hears. False if the vCPU is to stop.
   */
  mayRun(area: Uint8Array, onPaused: () => void): boolean {
    let told = REQUEST_NONE;
    for (;;) {
      // Cleared before the look: the mark of whoever sets it again from now on is there already.
      Atomics.store(area, RUN_IMMEDIATE_EXIT, 0);
      const request = Atomics.load(this.words, W_REQUEST);
      if (request === REQUEST_STOP) return false;
      if (request === REQUEST_NONE) return true;
      if (told !== request) onPaused();
      told = request;
      Atomics.wait(this.words, W_REQUEST, request);
    }
  }

  /** Any thread: interrupt line `gsi` (0-23), edge-triggered. Throws {@link SystemError}. */
  irqLine(gsi: number): IrqLine {
    if (gsi < 0 || gsi >= GSIS) throw new RangeError(`GSI ${gsi}: the I/O APIC has 0 to ${GSIS - 1}`);
    const known = Atomics.load(this.words, W_IRQ + gsi);
    const event = known === 0 ? this.createIrq(gsi) : new EventFd(known - 1);
    return { trigger: () => event.signal() };
  }

  private createIrq(gsi: number): EventFd {
    const event = EventFd.create();
    const before = Atomics.compareExchange(this.words, W_IRQ + gsi, 0, event.fd + 1);
    if (before !== 0) {
      // Another thread was faster.
      event.close();
      return new EventFd(before - 1);
    }
    this.own(event.fd);
    this.vm.setIrqFd(gsi, event.fd);
    return event;
  }

  /** Any thread: an event that counts the guest's 4-byte writes of `value` at `gpa`. Throws {@link SystemError}. */
  ioEvent(gpa: number, value: number): EventFd {
    const event = EventFd.create();
    this.own(event.fd);
    this.vm.setIoEventFd(gpa, value, event.fd);
    return event;
  }

  /** The descriptor is closed with the machine. */
  private own(fd: number): number {
    const at = Atomics.add(this.words, W_OWNED_COUNT, 1);
    if (at >= MAX_OWNED) throw new Error(`a machine has room for ${MAX_OWNED} descriptors`);
    Atomics.store(this.words, W_OWNED + at, fd);
    return fd;
  }

  /**
   * Closes all descriptors, takes away RAM above the MMIO gap and what is left of {@link withRunArea} by threads that did
   * not come to its end, once; the rest of RAM goes with the last reference to `memory`. No thread may use the machine
   * any more.
   */
  close(): void {
    for (const [index, address] of this.runAreas.entries()) {
      this.runAreas[index] = 0;
      if (address !== 0) unmapAt(address, this.words[W_RUN_BYTES]!);
    }
    const count = Math.min(Atomics.exchange(this.words, W_OWNED_COUNT, 0), MAX_OWNED);
    for (let i = 0; i < count; i++) closeFile(this.words[W_OWNED + i]!);
    const [address, size] = this.high;
    this.high.fill(0);
    if (address !== 0) unmapAt(address!, size!);
  }
}
