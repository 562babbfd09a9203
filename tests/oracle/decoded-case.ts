/** A case's instruction and operands, decoded from its bytes. */

import { DECODED, Decoder } from "../../src/hypervisor/soft/decoder.ts";
import { FS, GS, MODE_64, REG } from "../../src/hypervisor/soft/layout.ts";
import type { Insn } from "../../src/hypervisor/soft/table/index.ts";
import type { CaseBatch } from "./batch.ts";
import { FS_BASE, GS_BASE, RCX } from "./layout.ts";

const GPR_BYTES = 128;

/** What the software CPU's decoder makes of the code of a case. */
export class DecodedCase {
  private readonly decoder = new Decoder();
  insn: Insn | undefined;

  decode(cases: CaseBatch, i: number): void {
    const code = cases.code(i);
    const status = this.decoder.decode(cases.bytes, code.byteOffset, code.byteOffset + code.length, MODE_64);
    this.insn = status === DECODED ? this.decoder.insn : undefined;
  }

  get size(): number {
    return this.decoder.size;
  }
  get opcode(): number {
    return this.decoder.opcode;
  }
  get modrm(): number {
    return this.decoder.modrm;
  }
  get mem(): boolean {
    return this.decoder.mem;
  }

  /** The size of the first operand, which flags are about. */
  get flagsSize(): number {
    return this.insn?.operands[0]?.[1] === "b" ? 1 : this.decoder.size;
  }

  /** Count of a shift or rotate as encoded. */
  count(cases: CaseBatch, i: number): number {
    const last = this.insn?.operands.at(-1);
    if (last === "cb") return cases.u32[cases.gprIndex(i, RCX)]! & 0xff;
    return last === "1" ? 1 : this.decoder.imm & 0xff;
  }

  /** Linear address of the memory operand. */
  address(cases: CaseBatch, i: number): bigint {
    const d = this.decoder;
    const register = (offset: number): bigint => {
      if (offset === REG.zero) return 0n;
      return offset === REG.vbase
        ? BigInt(cases.codeAddress(i) + cases.code(i).length)
        : cases.gpr(i, (offset - REG.gpr) / 8);
    };
    const displacement = (BigInt(d.dispHigh) << 32n) | BigInt(d.dispLow >>> 0);
    let address = register(d.base) + (register(d.indexReg) << BigInt(d.scale)) + displacement;
    if (d.addr32) address = BigInt.asUintN(32, address);
    const segment = (d.segment - REG.segBase) / 8;
    if (segment === FS) address += BigInt(FS_BASE);
    if (segment === GS) address += BigInt(GS_BASE);
    return BigInt.asUintN(64, address);
  }

  /** Registers that the encoding names, as a mask. */
  get registers(): number {
    const d = this.decoder;
    let mask = 0;
    for (const offset of [d.reg, d.rm, d.base, d.indexReg]) {
      if (offset < REG.gpr + GPR_BYTES) mask |= 1 << ((offset - REG.gpr) >> 3);
    }
    return mask;
  }
}
