import { beforeEach, expect, test } from "bun:test";
import { I8042, I8042_SHARED_BYTES, I8042Back } from "./i8042.ts";

const DATA = 0;
const COMMAND = 4;

let controller: I8042;
let back: I8042Back;
let irqs: number;
let resets: number;

beforeEach(() => {
  const shared = new SharedArrayBuffer(I8042_SHARED_BYTES);
  const irq = { trigger: () => void irqs++ };
  controller = new I8042(shared, 0, irq, () => void resets++);
  back = new I8042Back(shared, 0, irq);
  irqs = 0;
  resets = 0;
});

function status(): number {
  return controller.read(COMMAND, 1);
}
function command(command: number, ...data: number[]): void {
  controller.write(COMMAND, 1, command);
  for (const byte of data) controller.write(DATA, 1, byte);
}
function readAll(): number[] {
  const bytes: number[] = [];
  while ((status() & 1) !== 0) bytes.push(controller.read(DATA, 1));
  return bytes;
}

test("0xFE resets the machine, and so does output port pin 0", () => {
  command(0xfe);
  expect(resets).toBe(1);
  command(0xd1, 0xdf);
  expect(resets).toBe(1);
  command(0xd1, 0xde);
  expect(resets).toBe(2);
});

test("the command byte starts with the keyboard on and can be written", () => {
  command(0x20);
  expect(readAll()).toEqual([0x05]);
  command(0x60);
  expect(status() & 0x08).toBe(0x08);
  controller.write(DATA, 1, 0x74);
  expect(status() & 0x08).toBe(0);
  command(0x20);
  expect(readAll()).toEqual([0x74]);
});

test("tests pass, the output port reads back, and there is no mouse", () => {
  command(0xaa);
  expect(readAll()).toEqual([0x55]);
  command(0xab);
  expect(readAll()).toEqual([0x00]);
  command(0xd1, 0x03);
  command(0xd0);
  expect(readAll()).toEqual([0x03]);
  command(0xa9);
  expect(readAll()).toEqual([0x01]);
  command(0xd3, 0x5a);
  expect(status() & 0x20).toBe(0);
  expect(readAll()).toEqual([0x5a]);
  expect(irqs).toBe(0);
});

test("the keyboard acknowledges, identifies itself and passes its self test", () => {
  controller.write(DATA, 1, 0xed);
  expect(readAll()).toEqual([0xfa]);
  controller.write(DATA, 1, 0xf2);
  expect(irqs).toBe(2);
  expect(readAll()).toEqual([0xfa, 0xab, 0x83]);
  expect(irqs).toBe(4);
  controller.write(DATA, 1, 0xff);
  expect(readAll()).toEqual([0xfa, 0xaa]);
});

test("Ctrl-Alt-Del arrives a byte an interrupt", () => {
  expect(back.sendCtrlAltDel()).toBe(true);
  expect(irqs).toBe(1);
  expect(readAll()).toEqual([0x14, 0x11, 0xe0, 0x71]);
  expect(irqs).toBe(4);
});

test("Ctrl-Alt-Del is translated to set 1 if the guest asks for it", () => {
  command(0x60, 0x45);
  back.sendCtrlAltDel();
  expect(readAll()).toEqual([0x1d, 0x38, 0xe0, 0x53]);
});

test("keys wait while the keyboard or its interrupt is off", () => {
  command(0xad);
  command(0x60, 0x14);
  expect(back.sendCtrlAltDel()).toBe(true);
  expect(irqs).toBe(0);
  expect(status() & 1).toBe(0);
  command(0x60, 0x05);
  expect(irqs).toBe(1);
  expect(readAll()).toHaveLength(4);
});

test("a guest that reads nothing gets no more keys", () => {
  let pressed = 0;
  while (back.sendCtrlAltDel()) pressed++;
  expect(pressed).toBe(16);
  expect(readAll()).toHaveLength(64);
  expect(back.sendCtrlAltDel()).toBe(true);
});

test("wide accesses and other offsets are nothing", () => {
  controller.write(COMMAND, 2, 0xfe);
  controller.write(2, 1, 0xfe);
  expect(resets).toBe(0);
  expect(controller.read(COMMAND, 2)).toBe(0);
  expect(controller.read(1, 1)).toBe(0);
});
