/** What a vCPU that cannot go on says to the user: why, where the guest was, and what can be done. */

import { type GuestMemory, GuestMemoryError } from "../../memory/guest-memory.ts";
import { ioctlStruct } from "../../platform/ioctl.ts";
import type { VcpuEnd } from "../types.ts";
import * as kvm from "./api.ts";
import { hasHardware, NO_HARDWARE } from "./host.ts";
import { readState } from "./registers.ts";

const { SHUTDOWN, FAIL_ENTRY, INTERNAL_ERROR, SYSTEM_EVENT } = kvm.KVM_EXIT;
const PAGE = 4096n;
/** Longest x86 instruction. */
const MAX_INSTRUCTION = 15;

const SUBERRORS: Readonly<Record<number, string>> = {
  [kvm.KVM_INTERNAL_ERROR_EMULATION]: "KVM could not emulate an instruction",
  [kvm.KVM_INTERNAL_ERROR_SIMUL_EX]: "exceptions came while KVM delivered others",
  [kvm.KVM_INTERNAL_ERROR_DELIVERY_EV]: "an exit came while KVM delivered an event",
  [kvm.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON]: "KVM got an exit that it does not know",
};

/** Access to the guest for a message about it. */
export interface ExitContext {
  readonly vcpuFd: number;
  readonly memory: GuestMemory;
  /** The kvm_run area. */
  readonly run: DataView;
}

/** What an exit that is neither I/O nor a request of this process makes of the run. Throws {@link SystemError}. */
export function describeEnd(reason: number, context: ExitContext): VcpuEnd {
  switch (reason) {
    case SHUTDOWN:
      return { kind: "shutdown", detail: describeGuest(context) };
    case SYSTEM_EVENT: {
      const type = context.run.getUint32(kvm.RUN_SYSTEM_EVENT_TYPE, true);
      if (type === kvm.KVM_SYSTEM_EVENT_SHUTDOWN || type === kvm.KVM_SYSTEM_EVENT_RESET)
        return { kind: "reset" };
      return { kind: "error", detail: `the guest reported system event ${type}. ${describeGuest(context)}` };
    }
    case FAIL_ENTRY:
      return { kind: "error", detail: describeFailedEntry(context) };
    case INTERNAL_ERROR:
      return { kind: "error", detail: describeInternalError(context) };
    default:
      return {
        kind: "error",
        detail: `KVM left the guest with exit reason ${reason}. ${describeGuest(context)}`,
      };
  }
}

/** KVM_EXIT_INTERNAL_ERROR as a message. */
function describeInternalError(context: ExitContext): string {
  const { run } = context;
  const suberror = run.getUint32(kvm.RUN_SUBERROR, true);
  const what = SUBERRORS[suberror] ?? `KVM reports internal error ${suberror}`;
  if (suberror !== kvm.KVM_INTERNAL_ERROR_EMULATION) return `${what}. ${describeGuest(context)}`;
  const hint = hasHardware() ? "" : `\n${NO_HARDWARE} Or give --accel soft.`;
  return `${what}. ${describeGuest(context, failedInstruction(run))}${hint}`;
}

/** The bytes that KVM itself says it failed on, if it does. */
function failedInstruction(run: DataView): Uint8Array | undefined {
  const hasFlags = run.getUint32(kvm.RUN_EMULATION_NDATA, true) > 0;
  if (!hasFlags) return undefined;
  const flags = run.getBigUint64(kvm.RUN_EMULATION_FLAGS, true);
  const size = Math.min(run.getUint8(kvm.RUN_EMULATION_INSN_SIZE), MAX_INSTRUCTION);
  const given = (flags & BigInt(kvm.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)) !== 0n && size > 0;
  return given
    ? Uint8Array.from({ length: size }, (_, i) => run.getUint8(kvm.RUN_EMULATION_INSN_BYTES + i))
    : undefined;
}

/** KVM_EXIT_FAIL_ENTRY as a message. */
function describeFailedEntry(context: ExitContext): string {
  const reason = context.run.getBigUint64(kvm.RUN_HARDWARE_REASON, true);
  return `the processor refused to enter the guest (reason 0x${reason.toString(16)}). ${describeGuest(context)}`;
}

/** Registers and the bytes at RIP (or `instruction`), in two lines. */
function describeGuest(context: ExitContext, instruction?: Uint8Array): string {
  const { text, rip, csBase } = readState(context.vcpuFd);
  const bytes = instruction ?? codeAt(context, (csBase + rip) & 0xffff_ffff_ffff_ffffn);
  const shown =
    bytes.length === 0
      ? "not in memory"
      : [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return `Registers: ${text}\nBytes at rip: ${shown}`;
}

/** Up to one instruction's bytes at `linear`; fewer, or none, where the guest's page tables lead nowhere. */
function codeAt({ vcpuFd, memory }: ExitContext, linear: bigint): Uint8Array {
  const code: number[] = [];
  let at = linear;
  while (code.length < MAX_INSTRUCTION) {
    const translation = new Uint8Array(kvm.TRANSLATION_BYTES);
    const view = new DataView(translation.buffer);
    view.setBigUint64(0, at, true);
    ioctlStruct(vcpuFd, kvm.KVM_TRANSLATE, translation, "KVM_TRANSLATE");
    if (view.getUint8(kvm.TRANSLATION_VALID) === 0) break;
    const length = Math.min(MAX_INSTRUCTION - code.length, Number(PAGE - (at % PAGE)));
    const gpa = Number(view.getBigUint64(kvm.TRANSLATION_PHYSICAL, true));
    try {
      code.push(...memory.slice(gpa, length));
    } catch (error) {
      if (error instanceof GuestMemoryError) break;
      throw error;
    }
    at = (at + BigInt(length)) & 0xffff_ffff_ffff_ffffn;
  }
  return Uint8Array.from(code);
}
