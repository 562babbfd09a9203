/** A program's bytes as the decoder reads them, for reports. */
import { DECODED, Decoder } from "../../src/hypervisor/soft/decoder.ts";
import { MODE_64, REG, SS, X87, XMM } from "../../src/hypervisor/soft/layout.ts";
import type { Assembled } from "./assembler.ts";

const NAMES = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split(" ");
const SEGMENTS = "es cs ss ds fs gs".split(" ");

function memory(d: Decoder, next: number): string {
  const parts: string[] = [];
  const displacement = BigInt.asIntN(64, (BigInt(d.dispHigh) << 32n) | BigInt(d.dispLow >>> 0));
  if (d.ripRelative) return `[0x${(BigInt(next) + displacement).toString(16)}]`;
  if (d.base !== REG.zero) parts.push(register(d.base));
  if (d.indexReg !== REG.zero) parts.push(`${register(d.indexReg)}*${1 << d.scale}`);
  if (displacement !== 0n || parts.length === 0) parts.push(`0x${displacement.toString(16)}`);
  const segment = (d.segment - REG.segBase) / 8;
  return `${segment > SS ? `${SEGMENTS[segment]}:` : ""}[${parts.join(" + ")}]`;
}

/** One line an instruction: address, bytes, table row and operands; label names where they stand. */
export function listing(code: Assembled): string {
  const decoder = new Decoder();
  const lines: string[] = [];
  const byAddress = new Map<number, string[]>();
  for (const [name, address] of code.labels)
    byAddress.set(address, [...(byAddress.get(address) ?? []), name]);
  for (let at = 0; at < code.bytes.length; ) {
    const address = code.base + at;
    for (const name of byAddress.get(address) ?? []) lines.push(`${name}:`);
    const status = decoder.decode(code.bytes, at, code.bytes.length, MODE_64);
    const length = status === DECODED ? decoder.length : 1;
    const hex = Buffer.from(code.bytes.subarray(at, at + length)).toString("hex");
    if (!/^cc$/.test(hex) || byAddress.has(address)) lines.push(line(decoder, status, address, length, hex));
    at += length;
  }
  return lines.join("\n");
}

function line(d: Decoder, status: number, address: number, length: number, hex: string): string {
  const start = `  ${address.toString(16)}  ${hex.padEnd(24)}`;
  if (status !== DECODED) return `${start}  (data)`;
  const { insn } = d;
  const next = address + length;
  const prefix = d.lock ? "lock " : d.rep ? `rep${d.rep === 0xf2 ? "ne" : ""} ` : "";
  const operands = insn.operands.map((o) => operand(d, o, next));
  if (insn.end === "direct") operands[0] = `0x${(next + d.imm).toString(16)}`;
  return `${start}  ${prefix}${insn.mnemonic} ${operands.join(", ")}  [${insn.text}] size ${d.size}`;
}

function operand(d: Decoder, letters: string, next: number): string {
  switch (letters[0]) {
    case "G":
    case "Z":
    case "V":
    case "P":
      return register(d.reg);
    case "E":
    case "M":
    case "R":
    case "W":
    case "U":
    case "Q":
    case "N":
    case "O":
      return d.mem ? memory(d, next) : register(d.rm);
    case "I":
      return `0x${(d.imm >>> 0).toString(16)}`;
    default:
      return letters;
  }
}

/** A register by its offset in the register file. */
function register(offset: number): string {
  if (offset >= XMM && offset < XMM + 256) return `xmm${(offset - XMM) / 16}`;
  if (offset >= X87) return `mm${(offset - X87) >> 4}`;
  const name = NAMES[(offset - REG.gpr) >> 3] ?? `register@${offset}`;
  return offset & 7 ? `${name} (high byte)` : name;
}
