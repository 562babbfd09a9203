import { expect, test } from "bun:test";
import { Assembler, at, CC_NE, ref } from "./asm.ts";
import { R8, R12, R15, RAX, RBX, RDI, RSP } from "./layout.ts";

/** Encodings as printed by a disassembler of the same instructions. */
const KNOWN: [string, (a: Assembler) => void, number[]][] = [
  ["mov eax, 5", (a) => a.movImm(RAX, 5), [0xb8, 5, 0, 0, 0]],
  [
    "movabs r15, 0x5a173c6e0000",
    (a) => a.movImm(R15, 0x5a17_3c6e_0000),
    [0x49, 0xbf, 0, 0, 0x6e, 0x3c, 0x17, 0x5a, 0, 0],
  ],
  ["mov r8, rax", (a) => a.mov(R8, RAX), [0x49, 0x89, 0xc0]],
  ["mov r12, [rsp+16]", (a) => a.load64(R12, at(RSP, 16)), [0x4c, 0x8b, 0xa4, 0x24, 16, 0, 0, 0]],
  ["mov [r12-8], ebx", (a) => a.store32(at(R12, -8), RBX), [0x41, 0x89, 0x9c, 0x24, 0xf8, 0xff, 0xff, 0xff]],
  ["mov [rdi], r8w", (a) => a.store16(at(RDI), R8), [0x66, 0x44, 0x89, 0x87, 0, 0, 0, 0]],
  ["cmp rbx, rax", (a) => a.cmp(RBX, RAX), [0x48, 0x39, 0xc3]],
  ["sub r15, rdi", (a) => a.sub(R15, RDI), [0x49, 0x29, 0xff]],
  ["push r12", (a) => a.push(R12), [0x41, 0x54]],
  ["fxrstor64 [rbx+192]", (a) => a.fxrstor64(at(RBX, 192)), [0x48, 0x0f, 0xae, 0x8b, 0xc0, 0, 0, 0]],
  ["wrgsbase rax", (a) => a.wrgsbase(RAX), [0xf3, 0x48, 0x0f, 0xae, 0xd8]],
];

test("known encodings", () => {
  for (const [name, emit, bytes] of KNOWN) {
    const a = new Assembler();
    emit(a);
    expect([name, ...a.assemble(0)]).toEqual([name, ...bytes]);
  }
});

test("labels: forward, backward, RIP-relative and absolute", () => {
  const a = new Assembler();
  a.label("start");
  a.jcc(CC_NE, "end");
  a.jmp("start");
  a.load64(RAX, ref("end", 8));
  a.label("end");
  a.quadLabel("start");
  expect(Array.from(a.assemble(0x1000))).toEqual([
    ...[0x0f, 0x85, 12, 0, 0, 0],
    ...[0xe9, 0xf5, 0xff, 0xff, 0xff],
    ...[0x48, 0x8b, 0x05, 8, 0, 0, 0],
    ...[0x00, 0x10, 0, 0, 0, 0, 0, 0],
  ]);
});

test("a label that is missing or taken is named", () => {
  const a = new Assembler();
  a.jmp("nowhere");
  expect(() => a.assemble(0)).toThrow(/"nowhere" is not defined/);
  a.label("here");
  expect(() => a.label("here")).toThrow(/"here" is defined twice/);
});
