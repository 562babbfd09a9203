/** One software vCPU: its parts put together, and the run loop around the interpreter. */
import type { BootRegisters, Segment, VcpuEnd } from "../types.ts";
import { Apic } from "./apic.ts";
import { CR0_BITS, CR4_BITS } from "./bits.ts";
import { Blocks } from "./blocks.ts";
import { Clock } from "./clock.ts";
import { type Cpu, newGeneration, type SoftBus, updateMode } from "./cpu.ts";
import { debugCause, deliver, type Interrupt } from "./exceptions.ts";
import { X87 } from "./float/x87.ts";
import { buildInterpreter, Interpreter } from "./interpreter.ts";
import { IoApic } from "./ioapic.ts";
import { IrqChip } from "./irqchip.ts";
import { Jit } from "./jit/jit.ts";
import { Lockstep } from "./jit/lockstep.ts";
import {
  ATTENTION,
  BUDGET,
  CPL,
  CR0,
  CR3,
  CR4,
  CS,
  CURRENT,
  DR,
  DS,
  EFER,
  ES,
  EXIT,
  FAULT_ERROR,
  FAULT_VECTOR,
  FLAGS_SYSTEM,
  FS,
  GDTR_BASE,
  GDTR_LIMIT,
  GS,
  IDTR_BASE,
  IDTR_LIMIT,
  IRQ_WAITING,
  MODE,
  MODE_TF,
  MXCSR,
  PAUSE,
  PAUSE_ASKED,
  PAUSE_TAKEN,
  RBP,
  RBX,
  RECORD,
  REG,
  RETURN_DEPTH,
  RIP,
  RSI,
  RSP,
  SHADOW_RIP,
  SS,
  STALE,
  STOP,
  TLB_MISSES,
  TR,
  X87 as X87_STATE,
} from "./layout.ts";
import { INTERPRET, Mmu } from "./mmu.ts";
import { Msrs } from "./msr.ts";
import { setSegment } from "./segments.ts";
import { SseSlow } from "./sse-slow.ts";
import { RFLAGS, State } from "./state.ts";
import { buildHelpers, type Helper, type HelperCall } from "./system.ts";
import { Times } from "./times.ts";

/** Instructions between two looks at the clock when no timer runs, and the least with one about to fire. */
const LONG_SLICE = 2_000_000;
const SHORT_SLICE = 2_000;
/** Longest sleep in HLT without a timer, in ms: a lost wake-up then costs this much, not a hang. */
const LONGEST_SLEEP = 1000;
/** Exits to TypeScript after which the garbage of their helpers is collected: about 0.5 KiB each. */
const EXITS_PER_COLLECTION = 8_192;

export interface SoftVcpuOptions {
  memory: WebAssembly.Memory;
  ramBytes: number;
  bus: SoftBus;
  log(message: string): void;
  /** The vCPU has stopped for a pause request. */
  onPaused?(): void;
  /** The compiled interpreter, if the caller has kept one; it is built anew otherwise. */
  interpreter?: WebAssembly.Module;
  /** False: everything is interpreted. A number: executions of a block before it is compiled. */
  jit?: boolean | number;
  /** Everything is interpreted a second time and compared; `run` throws at the first difference. */
  lockstep?: boolean;
  /** Time is measured by what it goes to: {@link SoftVcpuStats.milliseconds}. */
  measured?: boolean;
  /** Called now and then between slices, when helpers have left some 16 MiB of garbage. */
  collectGarbage?(): void;
}

/** Counters of a vCPU since it was made. */
export interface SoftVcpuStats {
  instructions: number;
  blocksDecoded: number;
  instructionsDecoded: number;
  pagesDropped: number;
  arenaFlushes: number;
  /** Accesses and fetches that missed the TLB, and those of them that took TypeScript, with all to devices and code pages. */
  tlbMisses: number;
  slowAccesses: number;
  /** Calls of TypeScript by instructions. */
  helperCalls: number;
  regionsCompiled: number;
  instructionsCompiled: number;
  /** Time that the vCPU has waited for compiled code, in all and at most at once. */
  compileMilliseconds: number;
  longestCompileMilliseconds: number;
  /** Times that all compiled code was dropped because there was too much. */
  evictions: number;
  /** Slices that lockstep has compared, and that it could not compare. */
  slicesCompared: number;
  slicesSkipped: number;
  exits: Record<string, number>;
  /** Where the thread's time went, if it was measured: code, its slow accesses and helpers, compiling, each exit. */
  milliseconds: Record<string, number>;
}

export class SoftVcpu {
  readonly state: State;
  readonly cpu: Cpu;
  readonly interpreter: Interpreter;
  private readonly irqchip: IrqChip;
  private readonly jit: Jit | undefined;
  private readonly lockstep: Lockstep | undefined;
  private readonly helpers: (Helper | undefined)[];
  private readonly call: HelperCall;
  /** By EXIT code. */
  private readonly exits = new Float64Array(Object.keys(EXIT).length);
  private readonly times: Times | undefined;
  private helperCalls = 0;
  private readonly reported = new Set<string>();
  private retired = 0;
  private exitsSinceCollection = 0;
  /** The timer that the last slice was made for, and when it fires, as performance.now() has it. */
  private timer: bigint | undefined;
  private timerAt = 0;
  /** Instructions per nanosecond, estimated from finished slices. */
  private speed = 0.1;
  private end: VcpuEnd | undefined;

  constructor(private readonly options: SoftVcpuOptions) {
    const { memory, ramBytes, bus } = options;
    const state = new State(memory);
    this.state = state;
    const times = options.measured ? new Times() : undefined;
    this.times = times;
    const clock = new Clock(state, ramBytes);
    const apic = new Apic(state, clock, 0);
    this.irqchip = new IrqChip(state, clock, apic);
    const mmu = new Mmu(
      state,
      ramBytes,
      {
        read: (gpa, size) => this.physicalRead(gpa, size),
        write: (gpa, size, value) => this.physicalWrite(gpa, size, value),
      },
      (page, from, to) => this.cpu.blocks.written(page, from, to),
    );
    const module = options.interpreter ?? new WebAssembly.Module(buildInterpreter());
    const helper = (descriptor: number, record: number) => this.helper(descriptor, record);
    const slow = (low: number, high: number, descriptor: number) => mmu.slow(low, high, descriptor);
    this.interpreter = new Interpreter(module, memory, {
      helper: times ? times.detour("helpers", helper) : helper,
      slow: times ? times.detour("slow accesses", slow) : slow,
      commit: (low, high, size) => mmu.commit(low, high, size),
      now: options.lockstep ? () => this.lockstep!.now() : () => performance.now(),
    });
    this.jit =
      options.jit === false
        ? undefined
        : new Jit(state, this.interpreter, typeof options.jit === "number" ? options.jit : undefined);
    const blocks = new Blocks(
      state,
      mmu,
      this.interpreter,
      (kind) => this.fpuUsable(kind),
      (bytes) => this.unknownInstruction(bytes),
      this.jit,
    );
    const x87 = new X87(new DataView(memory.buffer, X87_STATE, 160), {
      flags: {
        get: () => state.rflags,
        set: (zf, pf, cf) => {
          const clear = RFLAGS.OF | RFLAGS.SF | RFLAGS.AF | RFLAGS.ZF | RFLAGS.PF | RFLAGS.CF;
          state.rflags = (state.rflags & ~clear) | (zf << 6) | (pf << 2) | cf;
        },
      },
      setAx: (value) => state.view.setUint16(0, value, true),
    });
    this.cpu = {
      state,
      mmu,
      blocks,
      apic,
      clock,
      bus: this.irqchip.withPorts(bus),
      x87,
      sse: new SseSlow(memory),
      generation: 0,
      log: (message) => this.report(message),
    };
    if (options.lockstep) this.lockstep = new Lockstep(state, mmu, blocks, this.interpreter);
    const msrs = new Msrs(this.cpu);
    this.helpers = buildHelpers();
    this.call = { cpu: this.cpu, msrs, record: 0, size: 4, mem: false, addr32: false, mode64: true, rep: 0 };
    this.reset();
  }

  /** Register values after INIT that boot registers do not name. */
  private reset(): void {
    const { state, cpu } = this;
    cpu.x87.reset();
    state.set(MXCSR, 0x1f80);
    state.rflags = 2;
    state.set64(DR + 32, 0xffff_0ff0n);
    state.set64(DR + 40, 0x400n);
    state.set64(SHADOW_RIP, ~0n & 0xffff_ffff_ffff_ffffn);
    updateMode(cpu);
  }

  setBootRegisters(r: BootRegisters): void {
    const { state, cpu } = this;
    state.rip = r.rip;
    state.set64(RSP, r.rsp);
    state.set64(RBP, r.rbp);
    state.set64(RSI, r.rsi);
    state.set64(RBX, r.rbx);
    state.set64(CR0, r.cr0);
    state.set64(CR3, r.cr3);
    state.set64(CR4, r.cr4);
    state.set64(EFER, r.efer);
    const put = (segment: number, s: Segment) =>
      setSegment(cpu, segment, { selector: s.selector, base: s.base, limit: s.limit, attr: s.flags });
    put(CS, r.cs);
    for (const s of [ES, DS, FS, GS, SS]) put(s, r.data);
    put(TR, r.tr);
    state.set64(GDTR_BASE, r.gdt.base);
    state.set(GDTR_LIMIT, r.gdt.limit);
    state.set64(IDTR_BASE, r.idt.base);
    state.set(IDTR_LIMIT, r.idt.limit);
    state.set(CPL, r.cs.selector & 3);
    cpu.apic.virtualWire();
    newGeneration(cpu);
  }

  stats(): SoftVcpuStats {
    const { blocks, mmu } = this.cpu;
    const names = Object.entries(EXIT);
    return {
      instructions: this.retired,
      blocksDecoded: blocks.decoded,
      instructionsDecoded: blocks.instructions,
      pagesDropped: blocks.dropped,
      arenaFlushes: blocks.flushes,
      tlbMisses: Number(this.state.get64(TLB_MISSES)),
      slowAccesses: mmu.misses,
      helperCalls: this.helperCalls,
      regionsCompiled: this.jit?.regions ?? 0,
      instructionsCompiled: this.jit?.instructions ?? 0,
      compileMilliseconds: Math.round(this.jit?.time ?? 0),
      longestCompileMilliseconds: Math.round(this.jit?.longest ?? 0),
      evictions: this.jit?.evictions ?? 0,
      slicesCompared: this.lockstep?.compared ?? 0,
      slicesSkipped: this.lockstep?.skipped ?? 0,
      exits: Object.fromEntries(names.map(([name, code]) => [name, this.exits[code]!])),
      milliseconds: this.times?.report() ?? {},
    };
  }

  /** Runs until the vCPU stops for good. Blocks the thread. */
  run(): VcpuEnd {
    this.end = undefined;
    for (;;) {
      // Again if it is asked for meanwhile: the block after STI's shadow may begin with CLI.
      while (!this.end && Atomics.load(this.state.i32, ATTENTION >> 2) !== 0) this.attend();
      if (this.end) return this.end;
      this.step();
      if (this.end) return this.end;
    }
  }

  /** Ends {@link run} from within (a bus callback, a fatal fault). */
  stop(end: VcpuEnd): void {
    this.end = end;
    Atomics.store(this.state.i32, ATTENTION >> 2, -1);
  }

  // --- running -----------------------------------------------------------------------------------

  private step(): void {
    const { state } = this;
    const record = this.cpu.blocks.at(state.get(RIP), state.get(RIP + 4));
    if (record === 0) {
      this.deliverFault();
      return;
    }
    const start = performance.now();
    this.times?.entered(start, this.jit?.time ?? 0);
    const slice = this.slice(start);
    const trap = (state.get(MODE) & MODE_TF) !== 0;
    if (trap) Atomics.store(state.i32, ATTENTION >> 2, -1);
    this.prepare(slice);
    const code = this.lockstep && !trap ? this.lockstep.enter(record) : this.interpreter.enter(record);
    this.times?.left(performance.now(), code);
    const done = slice - state.get(BUDGET);
    this.retired += done;
    if (done > 100_000) {
      const rate = done / ((performance.now() - start) * 1e6);
      this.speed += (rate - this.speed) / 4;
    }
    this.exits[code]!++;
    this.jit?.tick();
    if (++this.exitsSinceCollection === EXITS_PER_COLLECTION) {
      this.exitsSinceCollection = 0;
      this.options.collectGarbage?.();
    }
    this.leave(code, trap, record);
  }

  /** Sets what code entered at RIP finds: its page, `budget` instructions, no waiting calls. */
  private prepare(budget: number): void {
    const { state } = this;
    state.set(REG.vbase, state.get(RIP) & ~0xfff);
    state.set(REG.vbase + 4, state.get(RIP + 4));
    state.set(BUDGET, budget);
    state.set(RETURN_DEPTH, 0);
  }

  /** Deals with an exit of the interpreter. `trap`: single-stepping began at the record `entered`. */
  private leave(code: number, trap: boolean, entered: number): void {
    const { state, cpu } = this;
    switch (code) {
      case EXIT.attention:
        // The slice may have ended because a timer is due, which nobody else notices.
        Atomics.store(state.i32, ATTENTION >> 2, -1);
        if (trap) this.singleStep();
        return;
      case EXIT.decode:
      case EXIT.changed:
        if (trap) this.singleStep();
        return;
      case EXIT.changedNoTrap:
        return;
      case EXIT.changedTrap:
        this.singleStep();
        return;
      case EXIT.fault:
        this.currentRip();
        this.deliverFault();
        return;
      case EXIT.halt:
        this.halt();
        return;
      case EXIT.hot:
        this.currentRip();
        cpu.blocks.compile(state.get(CURRENT), cpu.mmu.fetchPage(state.get(RIP), state.get(RIP + 4)));
        return;
      case EXIT.stale:
        this.currentRip();
        cpu.mmu.flushJump(state.get(RIP));
        // The instruction itself has run if only what follows it is stale: it has written to its own page.
        if (trap && state.get(CURRENT) !== entered) this.singleStep();
        return;
      case EXIT.crossing: {
        this.currentRip();
        const record = state.get(CURRENT);
        const nextLow = (state.get(REG.vbase) + 4096) | 0;
        const nextHigh = nextLow === 0 ? state.get(REG.vbase + 4) + 1 : state.get(REG.vbase + 4);
        const page = cpu.mmu.fetchPage(nextLow, nextHigh | 0);
        if (page < 0) this.deliverFault();
        else if ((page | 0) !== state.get(record + RECORD.imm)) {
          // Another page follows now: what was decoded across the boundary is no longer what is there.
          cpu.blocks.dropRecordPage(record);
        }
        return;
      }
      default:
        throw new Error(`interpreter returned ${code}`);
    }
  }

  /** Instructions until the run loop should look at the clock again; `now` as performance.now() has it. */
  private slice(now: number): number {
    const timer = this.irqchip.nextTimer;
    if (timer === undefined) return LONG_SLICE;
    if (timer !== this.timer) {
      this.timer = timer;
      this.timerAt = now + Number(timer - this.cpu.clock.now()) / 1e6;
    }
    const left = (this.timerAt - now) * 1e6 * this.speed;
    return Math.max(SHORT_SLICE, Math.min(LONG_SLICE, Math.floor(left)));
  }

  /** RIP := the instruction at CURRENT; one past the end of its page if the block ended there. */
  private currentRip(): void {
    const { state } = this;
    const offset = state.view.getUint16(state.get(CURRENT) + RECORD.offset, true);
    const base = state.get(REG.vbase);
    const low = (base + offset) | 0;
    state.set(RIP, low);
    state.set(RIP + 4, (state.get(REG.vbase + 4) + (low >>> 0 < base >>> 0 ? 1 : 0)) | 0);
  }

  private helper(descriptor: number, record: number): number {
    const helper = this.helpers[descriptor & 0xff];
    if (!helper) throw new Error(`no helper ${descriptor & 0xff}`);
    if (this.lockstep?.refuses(descriptor & 0xff)) {
      this.state.fault(INTERPRET);
      return EXIT.fault;
    }
    this.helperCalls++;
    const { call } = this;
    call.record = record;
    call.size = (descriptor >> 8) & 15;
    call.mem = (descriptor & 0x1000) !== 0;
    call.addr32 = (descriptor & 0x2000) !== 0;
    call.mode64 = (descriptor & 0x4000) !== 0;
    call.rep = (descriptor >> 16) & 0xff;
    return helper(call);
  }

  private fpuUsable(kind: "x87" | "mmx" | "sse"): boolean {
    const { state } = this;
    if (state.get(CR0) & (CR0_BITS.EM | CR0_BITS.TS)) return false;
    return kind !== "sse" || (state.get(CR4) & CR4_BITS.OSFXSR) !== 0;
  }

  // --- interrupts and exceptions -------------------------------------------------------------------

  private deliverFault(): void {
    const { state } = this;
    if (state.get(FAULT_VECTOR) === INTERPRET) {
      this.interpretOne();
      return;
    }
    this.deliver({
      vector: state.get(FAULT_VECTOR),
      error: state.get(FAULT_ERROR),
      software: false,
      external: false,
    });
  }

  private deliver(i: Interrupt): void {
    if (deliver(this.cpu, i)) return;
    this.stop({ kind: "shutdown", detail: `triple fault; ${this.describe()}` });
  }

  private singleStep(): void {
    const BS = 0x4000n;
    debugCause(this.cpu, BS);
    this.deliver({ vector: 1, error: -1, software: false, external: false });
  }

  /** Looks at everything that ATTENTION can mean. */
  private attend(): void {
    const { state, cpu } = this;
    const { i32 } = state;
    if (this.end) return;
    Atomics.store(i32, ATTENTION >> 2, 0);
    this.waitWhilePaused();
    if (Atomics.load(i32, STOP >> 2)) {
      this.end = { kind: "stopped" };
      return;
    }
    if (Atomics.load(i32, STALE >> 2)) cpu.blocks.dropStale();
    this.irqchip.collect();
    // Raising an interrupt asks for attention: that is being paid right now.
    Atomics.store(i32, ATTENTION >> 2, 0);
    if (this.stopOrPauseAsked()) Atomics.store(i32, ATTENTION >> 2, -1);
    const pending = this.irqchip.pending();
    state.set(IRQ_WAITING, pending ? 1 : 0);
    if (!pending || !(state.get(FLAGS_SYSTEM) & RFLAGS.IF)) return;
    if (state.rip === state.get64(SHADOW_RIP)) {
      this.shadowStep();
      return;
    }
    const vector = this.irqchip.acknowledge();
    state.set(IRQ_WAITING, this.irqchip.pending() ? 1 : 0);
    this.deliver({ vector, error: -1, software: false, external: true });
    // Another one may follow as soon as the handler allows it; IRQ_WAITING has it.
  }

  /** One instruction runs before interrupts are recognised: the shadow of STI and of MOV SS. */
  private shadowStep(): void {
    this.state.set64(SHADOW_RIP, ~0n & 0xffff_ffff_ffff_ffffn);
    this.interpretOne();
  }

  /** Runs one instruction in the interpreter, then looks for interrupts. */
  private interpretOne(): void {
    const { state } = this;
    const mode = state.get(MODE);
    // A block of one instruction, without the trap that single-stepping would add.
    state.set(MODE, mode | MODE_TF);
    const record = this.cpu.blocks.at(state.get(RIP), state.get(RIP + 4));
    if (record === 0) {
      state.set(MODE, mode);
      this.deliverFault();
      return;
    }
    Atomics.store(state.i32, ATTENTION >> 2, -1);
    this.prepare(1);
    const code = this.interpreter.enter(record);
    this.retired++;
    updateMode(this.cpu);
    Atomics.store(state.i32, ATTENTION >> 2, -1);
    this.leave(code, (mode & MODE_TF) !== 0, record);
  }

  /** HLT: sleeps until an interrupt, the timer, or a stop request. */
  private halt(): void {
    const { state, cpu } = this;
    const { i32 } = state;
    for (;;) {
      // Here and not in the run loop: a pause must not end the HLT.
      this.waitWhilePaused();
      this.irqchip.collect();
      const wake = this.irqchip.pending() && (state.get(FLAGS_SYSTEM) & RFLAGS.IF) !== 0;
      if (wake || this.end || Atomics.load(i32, STOP >> 2)) {
        Atomics.store(i32, ATTENTION >> 2, -1);
        return;
      }
      if (Atomics.load(i32, STALE >> 2)) cpu.blocks.dropStale();
      Atomics.store(i32, ATTENTION >> 2, 0);
      // Whoever raises something after this point makes ATTENTION -1, and the wait returns at once.
      if (this.workArrived()) continue;
      const timer = this.irqchip.nextTimer;
      const left = timer === undefined ? LONGEST_SLEEP : Number(timer - cpu.clock.now()) / 1e6;
      if (left <= 0) continue;
      Atomics.wait(i32, ATTENTION >> 2, 0, Math.min(left, LONGEST_SLEEP));
    }
  }

  private workArrived(): boolean {
    return this.irqchip.edgesWaiting() || this.stopOrPauseAsked();
  }

  private stopOrPauseAsked(): boolean {
    const { i32 } = this.state;
    return Atomics.load(i32, STOP >> 2) !== 0 || Atomics.load(i32, PAUSE >> 2) === PAUSE_ASKED;
  }

  /** Acknowledges a pause request, if there is one, and sleeps until it is taken back or the vCPU is to stop. */
  private waitWhilePaused(): void {
    const { i32 } = this.state;
    // In a loop: it may be resumed and paused again before it woke up.
    while (Atomics.compareExchange(i32, PAUSE >> 2, PAUSE_ASKED, PAUSE_TAKEN) === PAUSE_ASKED) {
      this.options.onPaused?.();
      while (Atomics.load(i32, PAUSE >> 2) === PAUSE_TAKEN && Atomics.load(i32, STOP >> 2) === 0) {
        Atomics.wait(i32, PAUSE >> 2, PAUSE_TAKEN);
      }
    }
  }

  // --- physical accesses outside RAM -----------------------------------------------------------------

  private physicalRead(gpa: number, size: number): number {
    const { apic } = this.cpu;
    if (apic.ownsLapic(gpa)) return apic.mmioRead(gpa);
    if (IoApic.owns(gpa)) return apic.ioapic.read(gpa);
    return this.options.bus.mmioRead(gpa, size);
  }

  private physicalWrite(gpa: number, size: number, value: number): void {
    const { apic } = this.cpu;
    if (apic.ownsLapic(gpa)) apic.mmioWrite(gpa, value);
    else if (IoApic.owns(gpa)) apic.ioapic.write(gpa, value | 0);
    else this.options.bus.mmioWrite(gpa, size, value);
  }

  // --- reports -----------------------------------------------------------------------------------

  /** Logs a message once. */
  private report(message: string): void {
    if (this.reported.has(message)) return;
    this.reported.add(message);
    this.options.log(message);
  }

  private unknownInstruction(bytes: Uint8Array): void {
    const hex = [...bytes].map((b) => b.toString(16).padStart(2, "0")).join(" ");
    const key = hex.slice(0, 11);
    if (this.reported.has(key)) return;
    this.reported.add(key);
    this.options.log(`#UD: no instruction for bytes ${hex} at RIP 0x${this.state.rip.toString(16)}`);
  }

  /** Registers, for an error report. */
  describe(): string {
    const { state } = this;
    const hex = (v: bigint) => v.toString(16).padStart(16, "0");
    const names = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"];
    const gprs = Array.from({ length: 16 }, (_, i) => `${names[i] ?? `r${i}`}=${hex(state.get64(i * 8))}`);
    return [
      `rip=${hex(state.rip)} rflags=${(state.rflags >>> 0).toString(16)} cpl=${state.cpl}`,
      ...gprs,
      `cr0=${hex(state.get64(CR0))} cr3=${hex(state.get64(CR3))} cr4=${hex(state.get64(CR4))} efer=${hex(state.get64(EFER))}`,
      `last vector=${state.get(FAULT_VECTOR)} error=${state.get(FAULT_ERROR)}`,
    ].join(" ");
  }
}
