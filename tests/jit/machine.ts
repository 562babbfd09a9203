/** Runs random programs on the software CPU, interpreted or compiled, and tells what a program did. */
import {
  FS,
  GS,
  GUEST_BASE,
  MXCSR,
  RAX as RAX_OFFSET,
  REG,
  RSP as RSP_OFFSET,
  X87_OPERAND,
  XMM,
} from "../../src/hypervisor/soft/layout.ts";
import type { CaseBatch } from "../oracle/batch.ts";
import {
  CODE_PAGE,
  DATA_CROSS,
  DATA_FIRST,
  DATA_READ_ONLY,
  DATA_THIRD,
  FS_BASE,
  FX_BYTES,
  FX_XMM,
  GS_BASE,
  PAD,
  PAGE_SIZE,
  RAX,
  RSP,
} from "../oracle/layout.ts";
import { Guest, IF, SPARE, type Trap } from "../soft/guest.ts";
import type { Assembled } from "./assembler.ts";
import { STACK_TOP } from "./memory-map.ts";

const NO_EXECUTE = 1n << 63n;
const USER_WRITE = 6n;
const USER = 4n;
const DATA_PHYSICAL = SPARE;
/** The oracle's code page, for programs that also run natively. */
const ORACLE_CODE_PHYSICAL = SPARE + PAGE_SIZE;
const XMM_BYTES = 256;
const X87_BYTES = 160;
const BREAKPOINT = 3;

/** A program with what it starts from. */
export interface Start {
  readonly code: Assembled;
  /** Where its parts begin, and its end. */
  readonly parts: readonly number[];
  /** Case `index` of a batch has flags, data page (window) and FPU state. */
  readonly cases: CaseBatch;
  readonly index: number;
}

/** What a program looked like at an exception. */
export interface Snapshot {
  readonly trap: Trap;
  readonly gprs: readonly bigint[];
  readonly mxcsr: number;
  /** XMM0 to XMM15, 16 bytes each; the FXSAVE image's first 160 bytes. */
  readonly xmm: Uint8Array;
  readonly x87: Uint8Array;
  readonly data: Uint8Array;
}

export class Machine {
  readonly guest: Guest;
  private readonly image: DataView;

  /** `jit` and `lockstep`: as SoftVcpu takes them. */
  constructor(
    readonly jit: false | number,
    lockstep = false,
  ) {
    this.guest = new Guest(jit, lockstep);
    const { pages, state } = this.guest;
    for (const at of [DATA_FIRST, DATA_CROSS, DATA_THIRD])
      pages.map(at, DATA_PHYSICAL, NO_EXECUTE | USER_WRITE);
    pages.map(DATA_READ_ONLY, DATA_PHYSICAL, NO_EXECUTE | USER);
    pages.map(CODE_PAGE, ORACLE_CODE_PHYSICAL, USER_WRITE);
    this.image = new DataView(state.view.buffer, X87_OPERAND, FX_BYTES);
  }

  private physical(linear: number): number {
    const inOracle = linear - CODE_PAGE;
    return inOracle >= 0 && inOracle < PAGE_SIZE
      ? ORACLE_CODE_PHYSICAL + inOracle
      : this.guest.physical(linear);
  }

  /** Writes a program's code; what was decoded or compiled from its pages is dropped. */
  load({ code }: Start): void {
    const { state, vcpu } = this.guest;
    const end = code.base + code.bytes.length;
    for (let page = code.base - (code.base % PAGE_SIZE); page < end; page += PAGE_SIZE) {
      const physical = this.physical(page);
      vcpu.cpu.blocks.drop(physical / PAGE_SIZE);
      const bytes = state.bytes.subarray(GUEST_BASE + physical, GUEST_BASE + physical + PAGE_SIZE).fill(PAD);
      const from = Math.max(page, code.base);
      bytes.set(code.bytes.subarray(from - code.base, page + PAGE_SIZE - code.base), from - page);
    }
  }

  /** Runs the program once from its start. After a fault it goes on with the part that follows. */
  run({ parts, cases, index }: Start): Snapshot[] {
    const { guest } = this;
    const { state, vcpu } = guest;
    const seen: Snapshot[] = [];
    cases.dataPage(
      index,
      state.bytes.subarray(GUEST_BASE + DATA_PHYSICAL, GUEST_BASE + DATA_PHYSICAL + PAGE_SIZE),
    );
    const fx = cases.fx(index);
    state.bytes.set(fx, X87_OPERAND);
    vcpu.cpu.x87.fxrstor(this.image);
    state.bytes.set(fx.subarray(FX_XMM, FX_XMM + XMM_BYTES), XMM);
    state.set(MXCSR, cases.mxcsr(index));
    const regs: Record<number, bigint> = {
      [REG.segBase + 8 * FS]: BigInt(FS_BASE),
      [REG.segBase + 8 * GS]: BigInt(GS_BASE),
    };
    for (let r = 0; r < 16; r++) if (r !== RSP) regs[8 * r] = 0n;
    let next = 1;
    const { end } = guest.run({
      code: [],
      again: true,
      at: parts[0]!,
      cpl: 3,
      rsp: STACK_TOP,
      rflags: cases.rflags(index) | IF | 2,
      regs,
      onTrap: (trap) => {
        seen.push(this.snapshot(trap));
        const at = parts[next++];
        if (trap.vector === BREAKPOINT || at === undefined) return false;
        const rip = trap.frame + (trap.error === -1 ? 0 : 8);
        guest.write64(rip, BigInt(at));
        // RF must not hide the next fault's flags, and a trap flag would only slow things down.
        guest.write64(rip + 16, BigInt((trap.rflags | 2) & ~0x1_0100));
        return true;
      },
    });
    if (end.kind !== "stopped") throw new Error(`the program ended the machine: ${JSON.stringify(end)}`);
    return seen;
  }

  private snapshot(trap: Trap): Snapshot {
    const { state, vcpu } = this.guest;
    // FXSAVE leaves parts of the image alone, and other instructions use the same memory.
    state.bytes.fill(0, X87_OPERAND, X87_OPERAND + FX_BYTES);
    vcpu.cpu.x87.fxsave(this.image);
    const gprs = Array.from({ length: 16 }, (_, r) => this.guest.reg(8 * r));
    // The handler has pushed RAX and uses it.
    gprs[RAX] = this.guest.read64(Number(state.get64(RSP_OFFSET)));
    gprs[RSP] = BigInt(trap.rsp);
    const copy = (at: number, length: number) => state.bytes.slice(at, at + length);
    return {
      trap,
      gprs,
      mxcsr: state.get(MXCSR),
      xmm: copy(XMM, XMM_BYTES),
      x87: copy(X87_OPERAND, X87_BYTES),
      data: copy(GUEST_BASE + DATA_PHYSICAL, PAGE_SIZE),
    };
  }
}

if (RAX_OFFSET !== RAX) throw new Error("register order");

/** What of two snapshots differs, one line each. `flags`: the bits of RFLAGS that count. */
export function differences(a: Snapshot, b: Snapshot, flags = -1): string[] {
  const out: string[] = [];
  const field = (name: string, x: number | bigint, y: number | bigint) => {
    if (x !== y) out.push(`${name}: ${x.toString(16)} / ${y.toString(16)}`);
  };
  field("vector", a.trap.vector, b.trap.vector);
  field("error code", a.trap.error, b.trap.error);
  field("rip", a.trap.rip, b.trap.rip);
  if (a.trap.vector === 14) field("cr2", a.trap.cr2, b.trap.cr2);
  field("rflags", a.trap.rflags & flags, b.trap.rflags & flags);
  for (let r = 0; r < 16; r++) field(`r${r}`, a.gprs[r]!, b.gprs[r]!);
  field("mxcsr", a.mxcsr, b.mxcsr);
  bytes("xmm", a.xmm, b.xmm, out);
  bytes("x87", a.x87, b.x87, out);
  bytes("data page", a.data, b.data, out);
  return out;
}

function bytes(name: string, a: Uint8Array, b: Uint8Array, out: string[]): void {
  const at = a.findIndex((byte, i) => byte !== b[i]);
  if (at < 0) return;
  const hex = (x: Uint8Array) => Buffer.from(x.subarray(at, at + 16)).toString("hex");
  out.push(`${name} + 0x${at.toString(16)}: ${hex(a)} / ${hex(b)}`);
}

/** Differences of two runs of a program, up to the first exception at which they differ. */
export function runDifferences(a: readonly Snapshot[], b: readonly Snapshot[]): string[] {
  for (let i = 0; i < Math.max(a.length, b.length); i++) {
    const [x, y] = [a[i], b[i]];
    if (!x || !y) return [`${a.length} exceptions / ${b.length} exceptions`];
    const d = differences(x, y);
    if (d.length > 0) return [`at exception ${i} (part ${i})`, ...d];
  }
  return [];
}
