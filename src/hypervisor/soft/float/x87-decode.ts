/** Which x87 instructions exist and what memory they touch (SDM vol. 2, appendix A.5). */

/** The memory operand of an x87 instruction. */
export interface X87Operand {
  /** Bytes, 0 for register forms. */
  readonly size: number;
  readonly access: "read" | "write" | "none";
}

const none: X87Operand = { size: 0, access: "none" };
const read = (size: number): X87Operand => ({ size, access: "read" });
const write = (size: number): X87Operand => ({ size, access: "write" });

const R2 = read(2);
const R4 = read(4);
const R8 = read(8);
const R10 = read(10);
const W2 = write(2);
const W4 = write(4);
const W8 = write(8);
const W10 = write(10);
/** Environment and whole-state images, 32-bit format. */
const R28 = read(28);
const W28 = write(28);
const R108 = read(108);
const W108 = write(108);
/** The same under a 16-bit operand size. */
const R14 = read(14);
const W14 = write(14);
const R94 = read(94);
const W94 = write(94);

const EIGHT_R4: readonly X87Operand[] = [R4, R4, R4, R4, R4, R4, R4, R4];
const EIGHT_R8: readonly X87Operand[] = [R8, R8, R8, R8, R8, R8, R8, R8];
const EIGHT_R2: readonly X87Operand[] = [R2, R2, R2, R2, R2, R2, R2, R2];

/** Memory forms by opcode - 0xD8 and ModRM.reg. FISTTP (DB, DD, DF /1) is listed. */
const MEMORY: readonly (readonly (X87Operand | undefined)[])[] = [
  EIGHT_R4,
  [R4, undefined, W4, W4, R28, R2, W28, W2],
  EIGHT_R4,
  [R4, W4, W4, W4, undefined, R10, undefined, W10],
  EIGHT_R8,
  [R8, W8, W8, W8, R108, undefined, W108, W2],
  EIGHT_R2,
  [R2, W2, W2, W2, R10, R8, W10, W8],
];

/** Register forms by opcode - 0xD8 and ModRM.reg: bit i set when ModRM.rm = i is defined. */
const REGISTER: readonly (readonly number[])[] = [
  [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
  [0xff, 0xff, 0x01, 0xff, 0x33, 0x7f, 0xff, 0xff],
  [0xff, 0xff, 0xff, 0xff, 0x00, 0x02, 0x00, 0x00],
  [0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0x00],
  [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
  [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00, 0x00],
  [0xff, 0xff, 0xff, 0x02, 0xff, 0xff, 0xff, 0xff],
  [0xff, 0xff, 0xff, 0xff, 0x01, 0xff, 0xff, 0x00],
];

/**
 * The operand of opcode `op` (0xD8 to 0xDF) with `modrm`, or undefined for #UD. `opsize16`: a 0x66 prefix
 * shortens the environment images. `fisttp`: the CPU has SSE3.
 */
export function x87Operand(
  op: number,
  modrm: number,
  opsize16 = false,
  fisttp = false,
): X87Operand | undefined {
  const group = op & 7;
  const reg = (modrm >>> 3) & 7;
  if (modrm >= 0xc0) return (REGISTER[group][reg] >>> (modrm & 7)) & 1 ? none : undefined;
  if (reg === 1 && !fisttp && (group === 3 || group === 5 || group === 7)) return undefined;
  const operand = MEMORY[group][reg];
  if (!opsize16) return operand;
  if (operand === R28) return R14;
  if (operand === W28) return W14;
  if (operand === R108) return R94;
  return operand === W108 ? W94 : operand;
}
