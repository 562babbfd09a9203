/** System instructions: nearly all are TypeScript helpers, since they run rarely and change machine state. */

import { HELPER } from "../helpers.ts";
import { ATTENTION, CPL, EXIT, FLAGS_SYSTEM, IRQ_WAITING, RIP, SHADOW_RIP } from "../layout.ts";
import { zeroAddress } from "../values.ts";
import { c32, i32 } from "../wasm/expr.ts";
import { type Insn, insn, type Semantics } from "./insn.ts";
import { endHelper, viaHelper } from "./shared.ts";

const IF = 0x200;

const cli: Semantics = (c) => {
  c.f.if(
    i32.load(zeroAddress, CPL),
    () => c.helper(HELPER.cli),
    () => c.f.store(4, zeroAddress, FLAGS_SYSTEM, i32.and(i32.load(zeroAddress, FLAGS_SYSTEM), c32(~IF))),
  );
};
/** Interrupts stay off for one more instruction when STI turns them on (SDM vol. 2B, STI). */
const sti: Semantics = (c) => {
  c.f.if(
    i32.load(zeroAddress, CPL),
    () => c.helper(HELPER.sti),
    () => {
      const flags = c.f.let(i32.load(zeroAddress, FLAGS_SYSTEM));
      c.f.if(i32.eqz(i32.and(flags, c32(IF))), () => c.f.store(8, zeroAddress, SHADOW_RIP, c.nextRip()));
      c.f.store(4, zeroAddress, FLAGS_SYSTEM, i32.or(flags, c32(IF)));
      // The block ends here when an interrupt waits, or may: a CLI further on must not shut it out again.
      const asked = i32.lt_s(i32.atomic_load(zeroAddress, ATTENTION), c32(0));
      c.f.if(i32.or(i32.load(zeroAddress, IRQ_WAITING), asked), () => {
        c.f.store(4, zeroAddress, ATTENTION, c32(-1));
        c.f.store(8, zeroAddress, RIP, c.nextRip());
        c.charge();
        c.leave(EXIT.changed);
      });
    },
  );
};

const end = { end: "indirect", system: true } as const;
const system = { system: true } as const;

export const systemInstructions = (): Insn[] => [
  ...insn("cli", "fa", "", cli, system),
  ...insn("sti", "fb", "", sti, system),
  ...insn("hlt", "f4", "", endHelper(HELPER.hlt), end),
  ...insn("in", "e4", "ab,Ib", viaHelper(HELPER.in), system),
  ...insn("in", "e5", "av,Ib", viaHelper(HELPER.in), system),
  ...insn("in", "ec", "ab", viaHelper(HELPER.in), system),
  ...insn("in", "ed", "av", viaHelper(HELPER.in), system),
  ...insn("out", "e6", "ab,Ib", viaHelper(HELPER.out), system),
  ...insn("out", "e7", "av,Ib", viaHelper(HELPER.out), system),
  ...insn("out", "ee", "ab", viaHelper(HELPER.out), system),
  ...insn("out", "ef", "av", viaHelper(HELPER.out), system),
  ...insn("insb", "6c", "", viaHelper(HELPER.ins), { ...system, size: "b", string: true }),
  ...insn("ins", "6d", "", viaHelper(HELPER.ins), { ...system, size: "v", string: true }),
  ...insn("outsb", "6e", "", viaHelper(HELPER.outs), { ...system, size: "b", string: true }),
  ...insn("outs", "6f", "", viaHelper(HELPER.outs), { ...system, size: "v", string: true }),
  ...insn("sldt", "0f 00 /0", "Ev", viaHelper(HELPER.sldt), system),
  ...insn("str", "0f 00 /1", "Ev", viaHelper(HELPER.str), system),
  ...insn("lldt", "0f 00 /2", "Ew", viaHelper(HELPER.lldt), system),
  ...insn("ltr", "0f 00 /3", "Ew", viaHelper(HELPER.ltr), system),
  ...insn("verr", "0f 00 /4", "Ew", viaHelper(HELPER.verr), system),
  ...insn("verw", "0f 00 /5", "Ew", viaHelper(HELPER.verw), system),
  ...insn("sgdt", "0f 01 /0", "Mv", viaHelper(HELPER.sgdt), system),
  ...insn("sidt", "0f 01 /1", "Mv", viaHelper(HELPER.sidt), system),
  ...insn("lgdt", "0f 01 /2", "Mv", viaHelper(HELPER.lgdt), system),
  ...insn("lidt", "0f 01 /3", "Mv", viaHelper(HELPER.lidt), system),
  ...insn("smsw", "0f 01 /4", "Ev", viaHelper(HELPER.smsw), system),
  ...insn("lmsw", "0f 01 /6", "Ew", endHelper(HELPER.lmsw), end),
  ...insn("invlpg", "0f 01 /7", "Mb", endHelper(HELPER.invlpg), end),
  ...insn("vmcall", "0f 01 c1", "", viaHelper(HELPER.vmcall), system),
  ...insn("vmmcall", "0f 01 d9", "", viaHelper(HELPER.vmcall), system),
  ...insn("lar", "0f 02 /r", "Gv,Ew", viaHelper(HELPER.lar), system),
  ...insn("lsl", "0f 03 /r", "Gv,Ew", viaHelper(HELPER.lsl), system),
  ...insn("clts", "0f 06", "", viaHelper(HELPER.clts), system),
  ...insn("invd", "0f 08", "", viaHelper(HELPER.wbinvd), system),
  ...insn("wbinvd", "0f 09", "", viaHelper(HELPER.wbinvd), system),
  ...insn("ud2", "0f 0b", "", endHelper(HELPER.ud), { end: "indirect" }),
  // AMD's processors raise #UD without fetching the ModRM byte that Intel's manual gives these two.
  ...insn("ud1", "0f b9", "", endHelper(HELPER.ud), { end: "indirect" }),
  ...insn("ud0", "0f ff", "", endHelper(HELPER.ud), { end: "indirect" }),
  ...insn("mov cr", "0f 20 /r", "Rq,Cq", viaHelper(HELPER.readCr), system),
  ...insn("mov dr", "0f 21 /r", "Rq,Dq", viaHelper(HELPER.readDr), system),
  ...insn("mov cr", "0f 22 /r", "Cq,Rq", endHelper(HELPER.writeCr), end),
  ...insn("mov dr", "0f 23 /r", "Dq,Rq", endHelper(HELPER.writeDr), end),
  ...insn("sysenter", "0f 34", "", endHelper(HELPER.sysenter), end),
  ...insn("sysexit", "0f 35", "", endHelper(HELPER.sysexit), { ...end, size: "y" }),
  ...insn("cpuid", "0f a2", "", viaHelper(HELPER.cpuid), system),
  ...insn("rdrand", "0f c7 /6", "Rv", viaHelper(HELPER.rdrand), system),
  ...insn("mfence/lfence/sfence", "np 0f ae e8", "", () => {}),
  ...[0xe8, 0xf0, 0xf8].flatMap((byte) =>
    Array.from({ length: 8 }, (_, i) => byte + i)
      .filter((b) => b !== 0xe8)
      .flatMap((b) => insn("mfence/lfence/sfence", `np 0f ae ${b.toString(16)}`, "", () => {})),
  ),
  ...insn("clflush", "np 0f ae /7", "Mb", (c) => {
    // Checks the address as a load does; there is no cache to flush.
    c.load(c.linearAddress(), 1);
  }),
];
