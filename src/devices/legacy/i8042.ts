/**
 * PS/2 controller (Intel 8042) with a keyboard that can only press Ctrl-Alt-Del: enough to restart the machine
 * and for Linux's i8042 and atkbd drivers to find what they look for without waiting for time-outs.
 * {@link I8042} is the register file, on the vCPU threads; {@link I8042Back} presses keys, on the vmm thread.
 */

import { ByteRing, ringBytes } from "../ring.ts";
import type { BusDevice, IrqLine } from "../types.ts";

/** Register offsets from port 0x60. */
const DATA = 0;
const STATUS_COMMAND = 4;

/** Status register. */
const STR_OUTPUT_FULL = 0x01;
const STR_SYSTEM_FLAG = 0x04;
const STR_COMMAND_DATA = 0x08;
const STR_KEYLOCK_OFF = 0x10;

/** Command byte. */
const CTR_KBD_INT = 0x01;
const CTR_SYSTEM_FLAG = 0x04;
const CTR_KBD_DISABLED = 0x10;
const CTR_TRANSLATE = 0x40;
const CTR_AT_RESET = CTR_SYSTEM_FLAG | CTR_KBD_INT;

/** Output port: pin 0 low resets the processor. */
const OUTPUT_PORT_NO_RESET = 0x01;

/** Controller commands (port 0x64). */
const CMD_READ_CTR = 0x20;
const CMD_WRITE_CTR = 0x60;
const CMD_TEST_AUX = 0xa9;
const CMD_SELF_TEST = 0xaa;
const CMD_TEST_KBD = 0xab;
const CMD_DISABLE_KBD = 0xad;
const CMD_ENABLE_KBD = 0xae;
const CMD_READ_OUTPUT_PORT = 0xd0;
const CMD_WRITE_OUTPUT_PORT = 0xd1;
const CMD_AUX_LOOP = 0xd3;
const CMD_PULSE_RESET = 0xfe;

const SELF_TEST_PASSED = 0x55;
const KBD_TEST_PASSED = 0x00;
/** "Clock line stuck low": there is no mouse. */
const AUX_TEST_FAILED = 0x01;

/** Keyboard commands (port 0x60). */
const KBD_IDENTIFY = 0xf2;
const KBD_RESET = 0xff;
const KBD_ACK = 0xfa;
const KBD_SELF_TEST_PASSED = 0xaa;
const KBD_ID = [0xab, 0x83];

/** Make codes of Ctrl, Alt and Del in scan code set 2, and in set 1 as the controller translates them. */
const CTRL_ALT_DEL_SET_2 = Uint8Array.of(0x14, 0x11, 0xe0, 0x71);
const CTRL_ALT_DEL_SET_1 = Uint8Array.of(0x1d, 0x38, 0xe0, 0x53);

/** Words of the shared state. The command byte is kept xor its reset value, so that zeroed memory is a
 * controller after reset. */
const W_CTR = 0;
const W_OUTPUT_PORT = 1;
/** The command that waits for a byte on port 0x60, or 0. */
const W_PENDING = 2;
const STATE_BYTES = 64;
const RING_BYTES = 64;

const REPLIES_OFFSET = STATE_BYTES;
const KEYS_OFFSET = REPLIES_OFFSET + ringBytes(RING_BYTES);

/** Bytes of shared memory that the controller takes; zeroed memory is a controller after reset. */
export const I8042_SHARED_BYTES = KEYS_OFFSET + ringBytes(RING_BYTES);

/** The vCPU side: ports 0x60 (offset 0) and 0x64 (offset 4). */
export class I8042 implements BusDevice {
  private readonly state: Int32Array;
  private readonly replies: ByteRing;
  private readonly keys: ByteRing;

  /**
   * @param irq the keyboard's line, IRQ 1.
   * @param onReset the guest pulled the processor's reset line; called on the vCPU's thread.
   */
  constructor(
    shared: SharedArrayBuffer,
    offset: number,
    private readonly irq: IrqLine,
    private readonly onReset: () => void,
  ) {
    this.state = new Int32Array(shared, offset, STATE_BYTES / 4);
    this.replies = new ByteRing(shared, offset + REPLIES_OFFSET, RING_BYTES);
    this.keys = new ByteRing(shared, offset + KEYS_OFFSET, RING_BYTES);
  }

  read(offset: number, size: number): number {
    if (size !== 1) return 0;
    if (offset === STATUS_COMMAND) return this.status();
    if (offset !== DATA) return 0;
    let byte = this.replies.pop();
    if (byte < 0 && this.keyboardEnabled) byte = this.keys.pop();
    // The line is edge-triggered and the driver takes one byte an interrupt.
    if (this.outputFull) this.interrupt();
    return Math.max(byte, 0);
  }

  write(offset: number, size: number, value: number): void {
    if (size !== 1) return;
    const byte = value & 0xff;
    if (offset === STATUS_COMMAND) this.command(byte);
    else if (offset === DATA) {
      const pending = Atomics.exchange(this.state, W_PENDING, 0);
      if (pending !== 0) this.commandData(pending, byte);
      else this.keyboard(byte);
    }
  }

  private get controlByte(): number {
    return controlByte(this.state);
  }

  private set controlByte(value: number) {
    Atomics.store(this.state, W_CTR, value ^ CTR_AT_RESET);
  }

  private get keyboardEnabled(): boolean {
    return (this.controlByte & CTR_KBD_DISABLED) === 0;
  }

  private get outputFull(): boolean {
    return this.replies.length > 0 || (this.keyboardEnabled && this.keys.length > 0);
  }

  private status(): number {
    let status = STR_KEYLOCK_OFF;
    if (this.outputFull) status |= STR_OUTPUT_FULL;
    if ((this.controlByte & CTR_SYSTEM_FLAG) !== 0) status |= STR_SYSTEM_FLAG;
    if (Atomics.load(this.state, W_PENDING) !== 0) status |= STR_COMMAND_DATA;
    return status;
  }

  private command(command: number): void {
    // A new command ends one that waits for its byte, and drops what nobody fetched.
    Atomics.store(this.state, W_PENDING, 0);
    switch (command) {
      case CMD_READ_CTR:
        this.reply(this.controlByte);
        break;
      case CMD_READ_OUTPUT_PORT:
        this.reply(Atomics.load(this.state, W_OUTPUT_PORT) | OUTPUT_PORT_NO_RESET);
        break;
      case CMD_SELF_TEST:
        this.reply(SELF_TEST_PASSED);
        break;
      case CMD_TEST_KBD:
        this.reply(KBD_TEST_PASSED);
        break;
      case CMD_TEST_AUX:
        this.reply(AUX_TEST_FAILED);
        break;
      case CMD_DISABLE_KBD:
        this.controlByte |= CTR_KBD_DISABLED;
        break;
      case CMD_ENABLE_KBD:
        this.controlByte &= ~CTR_KBD_DISABLED;
        if (this.outputFull) this.interrupt();
        break;
      case CMD_WRITE_CTR:
      case CMD_WRITE_OUTPUT_PORT:
      case CMD_AUX_LOOP:
        this.replies.clear();
        Atomics.store(this.state, W_PENDING, command);
        break;
      case CMD_PULSE_RESET:
        this.onReset();
        break;
      default:
        break;
    }
  }

  private commandData(command: number, byte: number): void {
    if (command === CMD_WRITE_CTR) {
      this.controlByte = byte;
      if (this.outputFull) this.interrupt();
    } else if (command === CMD_WRITE_OUTPUT_PORT) {
      Atomics.store(this.state, W_OUTPUT_PORT, byte);
      if ((byte & OUTPUT_PORT_NO_RESET) === 0) this.onReset();
    } else {
      // Comes back as keyboard data: how a controller without a mouse port answers the loop test.
      this.reply(byte);
    }
  }

  private keyboard(command: number): void {
    if (command === KBD_RESET) this.reply(KBD_ACK, KBD_SELF_TEST_PASSED);
    else if (command === KBD_IDENTIFY) this.reply(KBD_ACK, ...KBD_ID);
    else this.reply(KBD_ACK);
    this.interrupt();
  }

  private reply(...bytes: number[]): void {
    this.replies.clear();
    for (const byte of bytes) this.replies.push(byte);
  }

  private interrupt(): void {
    if ((this.controlByte & CTR_KBD_INT) !== 0) this.irq.trigger();
  }
}

/** The keyboard, on the vmm thread. */
export class I8042Back {
  private readonly state: Int32Array;
  private readonly keys: ByteRing;

  constructor(
    shared: SharedArrayBuffer,
    offset: number,
    private readonly irq: IrqLine,
  ) {
    this.state = new Int32Array(shared, offset, STATE_BYTES / 4);
    this.keys = new ByteRing(shared, offset + KEYS_OFFSET, RING_BYTES);
  }

  /** Presses Ctrl-Alt-Del. False if the keys do not fit because the guest has not read earlier ones. */
  sendCtrlAltDel(): boolean {
    const control = controlByte(this.state);
    const codes = (control & CTR_TRANSLATE) !== 0 ? CTRL_ALT_DEL_SET_1 : CTRL_ALT_DEL_SET_2;
    if (this.keys.free < codes.length) return false;
    this.keys.pushAll(codes);
    if ((control & CTR_KBD_INT) !== 0) this.irq.trigger();
    return true;
  }
}

function controlByte(state: Int32Array): number {
  return (Atomics.load(state, W_CTR) ^ CTR_AT_RESET) & 0xff;
}
