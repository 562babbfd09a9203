/** What the user reads of exits that no guest here can be made to cause: a kvm_run area of ours, and KVM's registers. */

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { bootRegisters, writeBootTables } from "../../src/boot/registers.ts";
import * as kvm from "../../src/hypervisor/kvm/api.ts";
import { describeEnd } from "../../src/hypervisor/kvm/exits.ts";
import { KvmMachine } from "../../src/hypervisor/kvm/machine.ts";
import { setBootRegisters } from "../../src/hypervisor/kvm/registers.ts";
import { GuestMemory } from "../../src/memory/guest-memory.ts";
import { cpuFlags, hasVirtualization } from "../../src/platform/cpu-flags.ts";
import { CODE, noKvm } from "./machine.ts";

const RAM_BYTES = 4 * 2 ** 20;
const RUN_BYTES = 4096;
const REGISTERS = new RegExp(`Registers: rax=.* rip=${CODE.toString(16)} .*cr0=.*cs=8 .*\nBytes at rip: `);

const reason = noKvm();
if (reason !== undefined) console.warn(`exits of KVM ${reason}`);

describe.skipIf(reason !== undefined)("a vCPU that cannot go on", () => {
  let machine: KvmMachine;
  let vcpuFd: number;
  let memory: GuestMemory;

  beforeAll(() => {
    const { memory: wasm, base } = KvmMachine.create(RAM_BYTES, 1);
    const { buffer } = wasm;
    if (!(buffer instanceof SharedArrayBuffer)) throw new Error("memory is not shared");
    machine = new KvmMachine(wasm);
    vcpuFd = machine.createVcpu(0);
    memory = new GuestMemory({ buffer, base, size: RAM_BYTES });
    writeBootTables(memory, "linux64");
    memory.write(CODE, Uint8Array.of(0x0f, 0x0b, 0xf4));
    setBootRegisters(vcpuFd, bootRegisters("linux64", CODE));
  });
  afterAll(() => machine.close());

  /** The end of a run that left the guest for `exit`, with `fill` in its kvm_run area. */
  function endOf(exit: number, fill: (run: DataView) => void = () => {}) {
    const run = new DataView(new ArrayBuffer(RUN_BYTES));
    fill(run);
    return describeEnd(exit, { vcpuFd, memory, run });
  }

  function detailOf(exit: number, fill?: (run: DataView) => void): string {
    const end = endOf(exit, fill);
    if (end.kind !== "error") throw new Error(`the run ended with ${end.kind}`);
    expect(end.detail).toMatch(REGISTERS);
    return end.detail;
  }

  test("KVM_EXIT_SHUTDOWN shows registers and code", () => {
    const end = endOf(kvm.KVM_EXIT.SHUTDOWN);
    expect(end.kind).toBe("shutdown");
    if (end.kind !== "shutdown") return;
    expect(end.detail).toMatch(REGISTERS);
    expect(end.detail).toContain("Bytes at rip: 0f 0b f4 00");
  });

  test("KVM_EXIT_FAIL_ENTRY gives the processor's reason", () => {
    const detail = detailOf(kvm.KVM_EXIT.FAIL_ENTRY, (run) =>
      run.setBigUint64(kvm.RUN_HARDWARE_REASON, 0x8000_0021n, true),
    );
    expect(detail).toStartWith("the processor refused to enter the guest (reason 0x80000021). ");
  });

  test.each([
    [kvm.KVM_SYSTEM_EVENT_SHUTDOWN, { kind: "reset" }],
    [kvm.KVM_SYSTEM_EVENT_RESET, { kind: "reset" }],
  ] as const)("KVM_EXIT_SYSTEM_EVENT %d is the guest's own end", (type, end) => {
    expect(
      endOf(kvm.KVM_EXIT.SYSTEM_EVENT, (run) => run.setUint32(kvm.RUN_SYSTEM_EVENT_TYPE, type, true)),
    ).toEqual(end);
  });

  test("another KVM_EXIT_SYSTEM_EVENT is told by its number", () => {
    const detail = detailOf(kvm.KVM_EXIT.SYSTEM_EVENT, (run) =>
      run.setUint32(kvm.RUN_SYSTEM_EVENT_TYPE, 3, true),
    );
    expect(detail).toStartWith("the guest reported system event 3. ");
  });

  test.each([
    [kvm.KVM_INTERNAL_ERROR_SIMUL_EX, "exceptions came while KVM delivered others. "],
    [kvm.KVM_INTERNAL_ERROR_DELIVERY_EV, "an exit came while KVM delivered an event. "],
    [kvm.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, "KVM got an exit that it does not know. "],
    [99, "KVM reports internal error 99. "],
  ])("KVM_EXIT_INTERNAL_ERROR %d", (suberror, text) => {
    const detail = detailOf(kvm.KVM_EXIT.INTERNAL_ERROR, (run) =>
      run.setUint32(kvm.RUN_SUBERROR, suberror, true),
    );
    expect(detail).toStartWith(text);
    expect(detail).not.toContain("--accel soft");
  });

  test("an instruction that cannot be emulated is the one that KVM names, else the one at RIP", () => {
    const named = detailOf(kvm.KVM_EXIT.INTERNAL_ERROR, (run) => {
      run.setUint32(kvm.RUN_SUBERROR, kvm.KVM_INTERNAL_ERROR_EMULATION, true);
      run.setUint32(kvm.RUN_EMULATION_NDATA, 3, true);
      run.setBigUint64(
        kvm.RUN_EMULATION_FLAGS,
        BigInt(kvm.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES),
        true,
      );
      // A length that no instruction has must not be believed.
      run.setUint8(kvm.RUN_EMULATION_INSN_SIZE, 255);
      for (let i = 0; i < 16; i++) run.setUint8(kvm.RUN_EMULATION_INSN_BYTES + i, 0xc0 + i);
    });
    expect(named).toStartWith("KVM could not emulate an instruction. ");
    expect(named).toMatch(/Bytes at rip: c0 c1 c2 c3 c4 c5 c6 c7 c8 c9 ca cb cc cd ce(\n|$)/);
    const found = detailOf(kvm.KVM_EXIT.INTERNAL_ERROR, (run) =>
      run.setUint32(kvm.RUN_SUBERROR, kvm.KVM_INTERNAL_ERROR_EMULATION, true),
    );
    expect(found).toContain("Bytes at rip: 0f 0b f4 00");
    // Where the processor runs the guest, another way to run it is no help.
    expect(found.includes("Or give --accel soft.")).toBe(!hasVirtualization(cpuFlags()));
  });

  test("any other exit is told by its number", () => {
    expect(detailOf(kvm.KVM_EXIT.HYPERCALL)).toStartWith("KVM left the guest with exit reason 3. ");
  });

  test("code outside of memory is said to be there", () => {
    setBootRegisters(vcpuFd, bootRegisters("linux64", 0x3000_0000));
    const end = endOf(kvm.KVM_EXIT.SHUTDOWN);
    setBootRegisters(vcpuFd, bootRegisters("linux64", CODE));
    expect(end.kind === "shutdown" && end.detail).toEndWith("Bytes at rip: not in memory");
  });
});
