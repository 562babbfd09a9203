/**
 * A bare guest for system-level tests: GDT, IDT, TSS and stacks as a small kernel would have them, and one
 * handler for every vector that reports itself through a port. Code runs through `SoftVcpu.run`.
 *
 * Every linear range is mapped where the constants say; the first 4 MiB are mapped to themselves for the
 * supervisor. Physical memory from {@link SPARE} on is the test's own.
 */

import { type SoftBus, updateMode } from "../../src/hypervisor/soft/cpu.ts";
import { createSoftMemory } from "../../src/hypervisor/soft/index.ts";
import { buildInterpreter } from "../../src/hypervisor/soft/interpreter.ts";
import {
  ATTENTION,
  CR2,
  CSTAR,
  DR,
  FAULT_ERROR,
  FAULT_VECTOR,
  GSI_EDGES,
  GUEST_BASE,
  IRQ_WAITING,
  KERNEL_GS_BASE,
  LDTR,
  LDTR_BASE,
  LSTAR,
  MXCSR,
  REG,
  RSP,
  SEG_ATTR,
  SEG_SELECTOR,
  SFMASK,
  SHADOW_RIP,
  SS,
  STAR,
  STOP,
} from "../../src/hypervisor/soft/layout.ts";
import type { State } from "../../src/hypervisor/soft/state.ts";
import { SoftVcpu } from "../../src/hypervisor/soft/vcpu.ts";
import type { BootRegisters, Segment, VcpuEnd } from "../../src/hypervisor/types.ts";
import { MmuPages, testJit } from "./machine.ts";

const RAM_BYTES = 4 << 20;

// Physical, and linear for the supervisor.
export const ROOT = 0x1000;
export const GDT = 0x1_0000;
export const IDT = 0x1_1000;
export const TSS = 0x1_2000;
/** Handler of vector n: 16 bytes from STUBS + 16 * n on. */
export const STUBS = 0x1_6000;
/** Tops of the supervisor's stacks. */
export const KERNEL_STACK = 0x1_9000;
export const RSP0 = 0x1_a000;
/** IST n (1 to 7) is at IST + n * 0x1000. */
export const IST = 0x1_b000;
/** Code that only the supervisor may touch. */
export const KERNEL_CODE = 0x3_0000;
const CODE_PHYSICAL = 0x10_0000;
const DATA_PHYSICAL = 0x11_0000;
const STACK_PHYSICAL = 0x12_0000;
/** Not mapped for the user and not used by the harness, up to the end of RAM at 4 MiB. */
export const SPARE = 0x20_0000;

// Linear, for every privilege, read-write-execute: 64 KiB each.
export const CODE = 0x40_0000;
export const DATA = 0x50_0000;
const STACK_BOTTOM = 0x60_0000;
export const STACK = 0x61_0000;
const RANGE = 0x1_0000;

/** Selectors of the GDT, in the order SYSCALL and SYSRET want them. */
export const KERNEL_CS = 0x08;
export const KERNEL_SS = 0x10;
export const USER_CS32 = 0x1b;
export const USER_SS = 0x23;
export const USER_CS = 0x2b;
export const TSS_SELECTOR = 0x30;
/** Free for tests: eight entries. */
export const FREE_SELECTOR = 0x40;
const GDT_BYTES = 0x80;

/** Descriptor attributes: bits 40-47 of the descriptor in bits 0-7, bits 52-55 in bits 12-15. */
export const CODE64 = 0xa09b;
export const CODE32 = 0xc09b;
export const DATA32 = 0xc093;
export const DPL3 = 0x60;

/** Ports. OUT 0xf1, AL ends the run; OUT 0xf0 belongs to the handlers; the rest are reported to the test. */
const PORT_VECTOR = 0xf0;
const PORT_END = 0xf1;

/** Vectors whose frame holds an error code (SDM vol. 3A, table 6-1). */
const WITH_ERROR = new Set([8, 10, 11, 12, 13, 14, 17]);

/** RFLAGS bits. */
export const TF = 0x100;
export const IF = 0x200;
export const IOPL3 = 0x3000;
export const NT = 0x4000;
export const RF = 0x1_0000;

const CR0_DEFAULT = 0x8001_0033n;
const CR4_DEFAULT = 0x6a0n;
const EFER_DEFAULT = 0xd01n;

/** What a handler found when it was entered. */
export interface Trap {
  vector: number;
  /** -1 if the vector has none. */
  error: number;
  rip: number;
  cs: number;
  rflags: number;
  rsp: number;
  ss: number;
  /** Address of the frame's first word (the error code, or RIP). */
  frame: number;
  cr2: bigint;
  /** RFLAGS and privilege inside the handler. */
  handlerRflags: number;
  cpl: number;
  /** SS inside the handler. */
  handlerSs: number;
}

export interface RunOptions {
  code: number[];
  /** Linear address of the code: within CODE or the identity map. */
  at?: number;
  cpl?: 0 | 3;
  /** Runs the code in the 32-bit user segment. */
  compat?: boolean;
  rflags?: number;
  rsp?: number;
  /** By register-file offset (RAX, RCX... of layout.ts). */
  regs?: Record<number, number | bigint>;
  cr0?: bigint;
  cr3?: number;
  cr4?: bigint;
  efer?: bigint;
  /** Last change of the registers the run starts with. */
  tweak?: (registers: BootRegisters) => void;
  /** Called in each handler. True: the handler returns to the (perhaps changed) frame. */
  onTrap?: (trap: Trap) => boolean;
  /** OUT to a port that is not the harness's own. */
  onOut?: (port: number, value: number) => void;
  /** Leaves out the final `out 0xf1, al; jmp $`. */
  bare?: boolean;
  /** The code is that of the run before: decoded blocks stay. */
  again?: boolean;
}

export interface RunResult {
  end: VcpuEnd;
  /** AL at the final OUT; undefined if the run ended another way. */
  result: number | undefined;
  traps: Trap[];
}

let compiled: WebAssembly.Module | undefined;

/** The interpreter, compiled once for every guest of the process. */
function interpreterModule(): WebAssembly.Module {
  compiled ??= new WebAssembly.Module(buildInterpreter());
  return compiled;
}

/** One watchdog for the whole process. */
let watchdog: Worker | undefined;

function watch(memory: WebAssembly.Memory): Int32Array {
  const since = new Int32Array(new SharedArrayBuffer(4));
  if (!watchdog) {
    watchdog = new Worker(new URL("./watchdog.ts", import.meta.url).href);
    watchdog.unref();
  }
  watchdog.postMessage({ memory, since });
  return since;
}

export class Guest {
  readonly memory: WebAssembly.Memory;
  readonly vcpu: SoftVcpu;
  readonly state: State;
  readonly logged: string[] = [];
  pages!: MmuPages;
  private readonly since: Int32Array;
  private options: RunOptions = { code: [] };
  private traps: Trap[] = [];
  private result: number | undefined;
  /** Reads of ports and of memory-mapped I/O are answered by these. */
  pioRead: SoftBus["pioRead"] = () => 0xffff_ffff;
  mmioRead: SoftBus["mmioRead"] = () => 0xffff_ffff;
  mmioWrite: SoftBus["mmioWrite"] = () => {};

  /** `jit` and `lockstep`: as SoftVcpu takes them. */
  constructor(jit: boolean | number = testJit(), lockstep = false) {
    const { memory } = createSoftMemory(RAM_BYTES);
    this.memory = memory;
    this.vcpu = new SoftVcpu({
      memory,
      ramBytes: RAM_BYTES,
      bus: {
        pioRead: (port, size) => this.pioRead(port, size),
        pioWrite: (port, _size, value) => this.out(port, value),
        mmioRead: (gpa, size) => this.mmioRead(gpa, size),
        mmioWrite: (gpa, size, value) => this.mmioWrite(gpa, size, value),
      },
      log: (message) => this.logged.push(message),
      interpreter: interpreterModule(),
      jit,
      lockstep,
    });
    this.state = this.vcpu.state;
    this.since = watch(memory);
    this.reset();
  }

  /** Clears RAM and registers and builds the tables anew. The APIC and the clock stay as they are. */
  reset(): void {
    const { state, vcpu } = this;
    const { cpu } = vcpu;
    state.bytes.fill(0, GUEST_BASE, GUEST_BASE + RAM_BYTES);
    cpu.blocks.flush();
    this.logged.length = 0;
    state.bytes.fill(0, REG.gpr, REG.gpr + 128);
    for (const word of [STAR, LSTAR, CSTAR, SFMASK, KERNEL_GS_BASE, CR2, LDTR_BASE]) state.set64(word, 0n);
    state.set(SEG_SELECTOR + 4 * LDTR, 0);
    state.set(SEG_ATTR + 4 * LDTR, 0);
    state.set64(DR + 32, 0xffff_0ff0n);
    state.set64(DR + 40, 0x400n);
    state.set(MXCSR, 0x1f80);
    for (const word of [IRQ_WAITING, STOP, GSI_EDGES, FAULT_VECTOR, FAULT_ERROR]) state.set(word, 0);
    cpu.x87.reset();
    this.buildPages();
    this.buildTables();
  }

  private buildPages(): void {
    const pages = new MmuPages(this.memory.buffer);
    this.pages = pages;
    const user = MmuPages.WRITE | MmuPages.USER;
    for (const [linear, physical] of [
      [CODE, CODE_PHYSICAL],
      [DATA, DATA_PHYSICAL],
      [STACK_BOTTOM, STACK_PHYSICAL],
    ] as const) {
      for (let at = 0; at < RANGE; at += 4096) pages.map(linear + at, physical + at, user);
    }
    // The identity map: two 2 MiB pages, in the page directory that the ranges above have made.
    const pdpt = Number(this.read64(ROOT) & ~0xfffn);
    const directory = Number(this.read64(pdpt) & ~0xfffn);
    this.write64(directory, 0x83n);
    this.write64(directory + 8, 0x20_0083n);
  }

  private buildTables(): void {
    this.setDescriptor(KERNEL_CS, 0n, 0xf_ffff, CODE64);
    this.setDescriptor(KERNEL_SS, 0n, 0xf_ffff, DATA32);
    this.setDescriptor(USER_CS32 & ~3, 0n, 0xf_ffff, CODE32 | DPL3);
    this.setDescriptor(USER_SS & ~3, 0n, 0xf_ffff, DATA32 | DPL3);
    this.setDescriptor(USER_CS & ~3, 0n, 0xf_ffff, CODE64 | DPL3);
    this.setDescriptor(TSS_SELECTOR, BigInt(TSS), TSS_LIMIT, 0x89);
    for (let vector = 0; vector < 256; vector++) {
      this.setGate(vector, STUBS + 16 * vector);
      const drop = WITH_ERROR.has(vector) ? [0x48, 0x83, 0xc4, 0x08] : [];
      // push rax; mov al, vector; out 0xf0, al; pop rax; add rsp, 8; iretq
      this.poke(STUBS + 16 * vector, [0x50, 0xb0, vector, 0xe6, PORT_VECTOR, 0x58, ...drop, 0x48, 0xcf]);
    }
    this.write64(TSS + 4, BigInt(RSP0));
    for (let ist = 1; ist < 8; ist++) this.write64(TSS + 36 + 8 * (ist - 1), BigInt(IST + ist * 0x1000));
    this.state.view.setUint16(GUEST_BASE + TSS + 102, 104, true);
    // All ports but 0xf0 to 0xff are closed to the user.
    this.state.bytes.fill(0xff, GUEST_BASE + TSS + 104, GUEST_BASE + TSS + TSS_LIMIT + 1);
    this.poke(TSS + 104 + 0xf0 / 8, [0, 0]);
  }

  /** Writes a GDT entry; `limit` in the descriptor's own unit. */
  setDescriptor(selector: number, base: bigint, limit: number, attr: number): void {
    const high =
      (Number((base >> 16n) & 0xffn) |
        (attr << 8) |
        (limit & 0xf_0000) |
        (Number((base >> 24n) & 0xffn) << 24)) >>>
      0;
    const low = ((limit & 0xffff) | (Number(base & 0xffffn) << 16)) >>> 0;
    this.write64(GDT + selector, (BigInt(high) << 32n) | BigInt(low));
    if ((attr & 0x10) === 0) this.write64(GDT + selector + 8, base >> 32n);
  }

  /** Writes an IDT gate: an interrupt gate (type 0xe) that the user may call, unless told otherwise. */
  setGate(
    vector: number,
    target: number | bigint,
    options: { type?: number; dpl?: number; ist?: number; present?: boolean; selector?: number } = {},
  ): void {
    const { type = 0xe, dpl = 3, ist = 0, present = true, selector = KERNEL_CS } = options;
    const t = BigInt(target);
    const attributes = BigInt(ist | (type << 8) | (dpl << 13) | (present ? 0x8000 : 0));
    const low =
      (t & 0xffffn) | (BigInt(selector) << 16n) | (attributes << 32n) | (((t >> 16n) & 0xffffn) << 48n);
    this.write64(IDT + vector * 16, low);
    this.write64(IDT + vector * 16 + 8, t >> 32n);
  }

  /** Guest-physical address of a linear one in a range of the harness. */
  physical(linear: number): number {
    for (const [from, to] of [
      [CODE, CODE_PHYSICAL],
      [DATA, DATA_PHYSICAL],
      [STACK_BOTTOM, STACK_PHYSICAL],
    ] as const) {
      if (linear >= from && linear < from + RANGE) return linear - from + to;
    }
    if (linear >= 0 && linear < RAM_BYTES) return linear;
    throw new RangeError(`linear address 0x${linear.toString(16)} is not mapped by the harness`);
  }

  /** Writes bytes behind the CPU's back; code that has run there already is not decoded anew. */
  poke(linear: number, bytes: ArrayLike<number>): void {
    this.state.bytes.set(bytes, GUEST_BASE + this.physical(linear));
  }
  read64(linear: number): bigint {
    return this.state.view.getBigUint64(GUEST_BASE + this.physical(linear), true);
  }
  write64(linear: number, value: bigint): void {
    this.state.view.setBigUint64(GUEST_BASE + this.physical(linear), BigInt.asUintN(64, value), true);
  }
  reg(offset: number): bigint {
    return this.state.get64(offset);
  }

  /** Runs code from a clean CPU (no TLB entries, no decoded code) until it ends. */
  run(options: RunOptions): RunResult {
    const { state, vcpu } = this;
    this.options = options;
    this.traps = [];
    this.result = undefined;
    const { at = CODE, cpl = 0, compat = false, rflags = 2 } = options;
    const ending = options.bare ? [] : [0xe6, PORT_END, 0xeb, 0xfe];
    vcpu.cpu.mmu.flushAll();
    if (!options.again) {
      vcpu.cpu.blocks.flush();
      this.poke(at, [...options.code, ...ending]);
    }
    const user = cpl === 3 || compat;
    const registers: BootRegisters = {
      rip: BigInt(at),
      rsp: BigInt(options.rsp ?? (user ? STACK : KERNEL_STACK)),
      rbp: 0n,
      rsi: 0n,
      rbx: 0n,
      cr0: options.cr0 ?? CR0_DEFAULT,
      cr3: BigInt(options.cr3 ?? ROOT),
      cr4: options.cr4 ?? CR4_DEFAULT,
      efer: options.efer ?? EFER_DEFAULT,
      cs: segment(compat ? USER_CS32 : user ? USER_CS : KERNEL_CS, compat ? CODE32 : CODE64, user),
      data: segment(user ? USER_SS : KERNEL_SS, DATA32, user),
      tr: { selector: TSS_SELECTOR, base: BigInt(TSS), limit: TSS_LIMIT, flags: 0x8b },
      gdt: { base: BigInt(GDT), limit: GDT_BYTES - 1 },
      idt: { base: BigInt(IDT), limit: 0xfff },
    };
    options.tweak?.(registers);
    vcpu.setBootRegisters(registers);
    for (const [offset, value] of Object.entries(options.regs ?? {})) {
      state.set64(Number(offset), BigInt.asUintN(64, BigInt(value)));
    }
    state.rflags = rflags;
    state.set64(SHADOW_RIP, 0xffff_ffff_ffff_ffffn);
    updateMode(vcpu.cpu);
    return this.resume();
  }

  /** Goes on where the last run was stopped. */
  resume(): RunResult {
    Atomics.store(this.state.i32, ATTENTION >> 2, -1);
    Atomics.store(this.since, 0, Date.now() & 0x7fff_ffff || 1);
    const end = this.vcpu.run();
    Atomics.store(this.since, 0, 0);
    if (end.kind === "stopped" && this.state.get(STOP) !== 0) {
      this.state.set(STOP, 0);
      throw new Error(`the guest did not end: ${this.vcpu.describe()}`);
    }
    return { end, result: this.result, traps: this.traps };
  }

  /** Ends the run from a callback. */
  stop(): void {
    this.vcpu.stop({ kind: "stopped" });
  }

  private out(port: number, value: number): void {
    if (port === PORT_VECTOR) {
      const trap = this.trap(value);
      this.traps.push(trap);
      if (!this.options.onTrap?.(trap)) this.stop();
    } else if (port === PORT_END) {
      this.result = value;
      this.stop();
    } else this.options.onOut?.(port, value);
  }

  private trap(vector: number): Trap {
    const { state } = this;
    // The handler has pushed RAX.
    const frame = Number(state.get64(RSP)) + 8;
    const withError = WITH_ERROR.has(vector) && !this.isBare(frame);
    const at = frame + (withError ? 8 : 0);
    const word = (n: number) => Number(this.read64(at + 8 * n));
    return {
      vector,
      error: withError ? Number(this.read64(frame)) : -1,
      rip: word(0),
      cs: word(1),
      rflags: word(2),
      rsp: word(3),
      ss: word(4),
      frame,
      cr2: state.get64(CR2),
      handlerRflags: state.rflags,
      cpl: state.cpl,
      handlerSs: state.get(SEG_SELECTOR + 4 * SS),
    };
  }

  /** A software interrupt to a vector with an error code pushes none: its frame ends on a 16-byte boundary. */
  private isBare(frame: number): boolean {
    return (frame & 15) === 8;
  }
}

/** 104 bytes of TSS, 8 KiB of port bitmap, and the byte that must follow it. */
export const TSS_LIMIT = 104 + 8192;

function segment(selector: number, attr: number, user: boolean): Segment {
  return { selector, base: 0n, limit: 0xffff_ffff, flags: attr | (user ? DPL3 : 0) };
}
