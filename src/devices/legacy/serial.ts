/**
 * Serial port: a National Semiconductor 16550A with 16-byte FIFOs, as its data sheet and Linux's 8250 driver
 * have it. {@link Serial} is the register file and runs on the vCPU threads; {@link SerialBack} is the far end
 * of the wire and runs on the vmm thread. Baud rate and line format are remembered and have no effect.
 */

import { ByteRing, ringBytes } from "../ring.ts";
import type { BusDevice, IrqLine } from "../types.ts";

/** Register offsets from the port base. */
const RBR_THR_DLL = 0;
const IER_DLM = 1;
const IIR_FCR = 2;
const LCR = 3;
const MCR = 4;
const LSR = 5;
const MSR = 6;
const SCR = 7;

/** Interrupt enable. */
const IER_RDI = 0x01;
const IER_THRI = 0x02;
const IER_RLSI = 0x04;
const IER_MSI = 0x08;
const IER_MASK = 0x0f;

/** Interrupt identification, by falling priority. */
const IIR_RLSI = 0x06;
const IIR_RDI = 0x04;
const IIR_THRI = 0x02;
const IIR_MSI = 0x00;
const IIR_NO_INT = 0x01;
const IIR_FIFO_ENABLED = 0xc0;

const FCR_ENABLE_FIFO = 0x01;
const FCR_CLEAR_RCVR = 0x02;

const LCR_DLAB = 0x80;

const MCR_DTR = 0x01;
const MCR_RTS = 0x02;
const MCR_OUT1 = 0x04;
const MCR_OUT2 = 0x08;
const MCR_LOOP = 0x10;
const MCR_MASK = 0x1f;

const LSR_DR = 0x01;
const LSR_OE = 0x02;
const LSR_THRE = 0x20;
const LSR_TEMT = 0x40;

const MSR_DCTS = 0x01;
const MSR_DDSR = 0x02;
const MSR_TERI = 0x04;
const MSR_DDCD = 0x08;
const MSR_CTS = 0x10;
const MSR_DSR = 0x20;
const MSR_RI = 0x40;
const MSR_DCD = 0x80;

/** Words of the shared state. All zero is the state after a hardware reset. */
const W_IER = 0;
const W_FCR = 1;
const W_LCR = 2;
const W_MCR = 3;
const W_SCR = 4;
const W_DIVISOR = 5;
/** 1: the transmitter-empty cause stands, until IIR reports it or THR is written. */
const W_THR_EMPTY = 6;
/** MSR delta bits. */
const W_MSR_DELTA = 7;
/** LSR_OE after an overrun in loopback. */
const W_OVERRUN = 8;
/** 1: the front found the transmit ring full; the back owes it the transmitter-empty cause. */
const W_TX_STALLED = 9;
/** 1: the back found the receive ring full; the front owes it a doorbell. */
const W_RX_STALLED = 10;
/** Bytes lost because the guest wrote to THR while LSR.THRE was clear. */
const W_TX_LOST = 11;
const STATE_BYTES = 64;

const FIFO_BYTES = 16;
const TX_RING_BYTES = 16 * 1024;
const RX_RING_BYTES = 1024;

const LOOP_OFFSET = STATE_BYTES;
const TX_OFFSET = LOOP_OFFSET + 192;
const RX_OFFSET = TX_OFFSET + ringBytes(TX_RING_BYTES);

/** Bytes of shared memory that a serial port takes; zeroed memory is a port after reset. */
export const SERIAL_SHARED_BYTES = RX_OFFSET + ringBytes(RX_RING_BYTES);

/** The vCPU side of the port: its eight registers. One object per vCPU thread, all on the same memory. */
export class Serial implements BusDevice {
  private readonly state: Int32Array;
  private readonly tx: ByteRing;
  private readonly rx: ByteRing;
  private readonly loop: ByteRing;

  /**
   * @param doorbell wakes the vmm thread: there is output after a time without, or room for input again. The
   * vmm thread answers with {@link SerialBack.drain} and by offering its input again.
   */
  constructor(
    shared: SharedArrayBuffer,
    offset: number,
    private readonly irq: IrqLine,
    private readonly doorbell: () => void,
  ) {
    this.state = new Int32Array(shared, offset, STATE_BYTES / 4);
    this.tx = new ByteRing(shared, offset + TX_OFFSET, TX_RING_BYTES);
    this.rx = new ByteRing(shared, offset + RX_OFFSET, RX_RING_BYTES);
    this.loop = new ByteRing(shared, offset + LOOP_OFFSET, FIFO_BYTES);
  }

  read(offset: number, size: number): number {
    if (size !== 1) return 0;
    switch (offset) {
      case RBR_THR_DLL:
        return this.latch ? this.get(W_DIVISOR) & 0xff : this.readData();
      case IER_DLM:
        return this.latch ? this.get(W_DIVISOR) >> 8 : this.get(W_IER);
      case IIR_FCR:
        return this.readInterruptIdentification();
      case LCR:
        return this.get(W_LCR);
      case MCR:
        return this.get(W_MCR);
      case LSR:
        return this.readLineStatus();
      case MSR:
        return modemLines(this.get(W_MCR)) | Atomics.exchange(this.state, W_MSR_DELTA, 0);
      case SCR:
        return this.get(W_SCR);
      default:
        return 0;
    }
  }

  write(offset: number, size: number, value: number): void {
    if (size !== 1) return;
    const byte = value & 0xff;
    switch (offset) {
      case RBR_THR_DLL:
        if (this.latch) this.set(W_DIVISOR, (this.get(W_DIVISOR) & 0xff00) | byte);
        else this.writeData(byte);
        break;
      case IER_DLM:
        if (this.latch) this.set(W_DIVISOR, (this.get(W_DIVISOR) & 0x00ff) | (byte << 8));
        else this.writeInterruptEnable(byte & IER_MASK);
        break;
      case IIR_FCR:
        this.writeFifoControl(byte);
        break;
      case LCR:
        this.set(W_LCR, byte);
        break;
      case MCR:
        this.writeModemControl(byte & MCR_MASK);
        break;
      case SCR:
        this.set(W_SCR, byte);
        break;
      default:
        break;
    }
  }

  private get(word: number): number {
    return Atomics.load(this.state, word);
  }

  private set(word: number, value: number): void {
    Atomics.store(this.state, word, value);
  }

  /** True if offsets 0 and 1 are the divisor. */
  private get latch(): boolean {
    return (this.get(W_LCR) & LCR_DLAB) !== 0;
  }

  private get loopback(): boolean {
    return (this.get(W_MCR) & MCR_LOOP) !== 0;
  }

  /** In loopback the line from outside is disconnected: only what was sent comes back. */
  private get receiver(): ByteRing {
    return this.loopback ? this.loop : this.rx;
  }

  private readData(): number {
    const byte = this.receiver.pop();
    if (
      this.get(W_RX_STALLED) !== 0 &&
      this.rx.length <= RX_RING_BYTES / 2 &&
      Atomics.exchange(this.state, W_RX_STALLED, 0) !== 0
    ) {
      this.doorbell();
    }
    return Math.max(byte, 0);
  }

  private writeData(byte: number): void {
    // While the cause stands the driver has an interrupt to come for it, and needs no second one.
    const standing = Atomics.exchange(this.state, W_THR_EMPTY, 0) !== 0;
    if (this.loopback) {
      if (this.loop.push(byte) === "full") {
        this.set(W_OVERRUN, LSR_OE);
        if ((this.get(W_IER) & IER_RLSI) !== 0) this.irq.trigger();
      } else if ((this.get(W_IER) & IER_RDI) !== 0) {
        this.irq.trigger();
      }
      raiseTransmitterEmpty(this.state, this.irq, standing);
      return;
    }
    const pushed = this.tx.push(byte);
    if (pushed === "full") Atomics.add(this.state, W_TX_LOST, 1);
    else if (pushed === "wake") this.doorbell();
    if (!transmitterReady(this.tx)) {
      this.set(W_TX_STALLED, 1);
      // The back may have drained the ring before it could see the mark, and then would not come again.
      if (!transmitterReady(this.tx) || Atomics.exchange(this.state, W_TX_STALLED, 0) === 0) return;
    }
    raiseTransmitterEmpty(this.state, this.irq, standing);
  }

  private writeInterruptEnable(value: number): void {
    const added = value & ~Atomics.exchange(this.state, W_IER, value);
    let raise = false;
    if ((added & IER_THRI) !== 0 && transmitterReady(this.tx)) {
      // Enabling the cause raises it anew, even if IIR has reported it before.
      this.set(W_THR_EMPTY, 1);
      raise = true;
    }
    if ((added & IER_RDI) !== 0 && this.receiver.length > 0) raise = true;
    if ((added & IER_RLSI) !== 0 && this.get(W_OVERRUN) !== 0) raise = true;
    if ((added & IER_MSI) !== 0 && this.get(W_MSR_DELTA) !== 0) raise = true;
    if (raise) this.irq.trigger();
  }

  private readInterruptIdentification(): number {
    const fifo = (this.get(W_FCR) & FCR_ENABLE_FIFO) !== 0 ? IIR_FIFO_ENABLED : 0;
    const enabled = this.get(W_IER);
    if ((enabled & IER_RLSI) !== 0 && this.get(W_OVERRUN) !== 0) return fifo | IIR_RLSI;
    if ((enabled & IER_RDI) !== 0 && this.receiver.length > 0) return fifo | IIR_RDI;
    if ((enabled & IER_THRI) !== 0 && Atomics.exchange(this.state, W_THR_EMPTY, 0) !== 0) {
      return fifo | IIR_THRI;
    }
    if ((enabled & IER_MSI) !== 0 && this.get(W_MSR_DELTA) !== 0) return fifo | IIR_MSI;
    return fifo | IIR_NO_INT;
  }

  private writeFifoControl(value: number): void {
    const before = Atomics.exchange(this.state, W_FCR, value);
    const toggled = ((before ^ value) & FCR_ENABLE_FIFO) !== 0;
    // What was sent is on the wire already; only the receiver has something to clear.
    if (toggled || (value & FCR_CLEAR_RCVR) !== 0) {
      this.loop.clear();
      this.rx.clear();
    }
  }

  private writeModemControl(value: number): void {
    const before = modemLines(Atomics.exchange(this.state, W_MCR, value));
    const after = modemLines(value);
    const changed = before ^ after;
    let delta = 0;
    if ((changed & MSR_CTS) !== 0) delta |= MSR_DCTS;
    if ((changed & MSR_DSR) !== 0) delta |= MSR_DDSR;
    if ((changed & MSR_DCD) !== 0) delta |= MSR_DDCD;
    if ((changed & before & MSR_RI) !== 0) delta |= MSR_TERI;
    if (delta === 0) return;
    Atomics.or(this.state, W_MSR_DELTA, delta);
    if ((this.get(W_IER) & IER_MSI) !== 0) this.irq.trigger();
  }

  private readLineStatus(): number {
    const { loopback } = this;
    let status = this.get(W_OVERRUN);
    // A driver polls this register, and a plain load is much cheaper than an exchange.
    if (status !== 0) this.set(W_OVERRUN, 0);
    if ((loopback ? this.loop : this.rx).length > 0) status |= LSR_DR;
    if (loopback || transmitterReady(this.tx)) status |= LSR_THRE | LSR_TEMT;
    return status;
  }
}

/** The far end of the wire, on the vmm thread. */
export class SerialBack {
  private readonly state: Int32Array;
  private readonly tx: ByteRing;
  private readonly rx: ByteRing;

  constructor(
    shared: SharedArrayBuffer,
    offset: number,
    private readonly irq: IrqLine,
  ) {
    this.state = new Int32Array(shared, offset, STATE_BYTES / 4);
    this.tx = new ByteRing(shared, offset + TX_OFFSET, TX_RING_BYTES);
    this.rx = new ByteRing(shared, offset + RX_OFFSET, RX_RING_BYTES);
  }

  /** Hands all output so far to `sink`. A piece is valid only during the call; if `sink` throws, it is kept. */
  drain(sink: (bytes: Uint8Array) => void): void {
    try {
      this.tx.drain(sink);
    } finally {
      if (transmitterReady(this.tx) && Atomics.exchange(this.state, W_TX_STALLED, 0) !== 0) {
        raiseTransmitterEmpty(this.state, this.irq, false);
      }
    }
  }

  /**
   * Offers input to the guest; returns how many bytes were taken. If not all were, the front rings the doorbell
   * once the guest has read half of what waits, and the rest should be offered again.
   */
  pushInput(bytes: Uint8Array): number {
    let accepted = this.rx.pushAll(bytes);
    if (accepted < bytes.length) {
      Atomics.store(this.state, W_RX_STALLED, 1);
      // The guest may have emptied the ring before it could see the mark, and then would not ring.
      accepted += this.rx.pushAll(bytes.subarray(accepted));
    }
    const loopback = (Atomics.load(this.state, W_MCR) & MCR_LOOP) !== 0;
    if (accepted > 0 && !loopback && (Atomics.load(this.state, W_IER) & IER_RDI) !== 0) this.irq.trigger();
    return accepted;
  }

  /** Bytes lost so far because the guest sent while LSR.THRE was clear. */
  get lostOutput(): number {
    return Atomics.load(this.state, W_TX_LOST) >>> 0;
  }
}

/** A driver that sees LSR.THRE may send a whole FIFO, so the transmitter is ready only if that much fits. */
function transmitterReady(tx: ByteRing): boolean {
  return tx.free >= FIFO_BYTES;
}

function raiseTransmitterEmpty(state: Int32Array, irq: IrqLine, standing: boolean): void {
  Atomics.store(state, W_THR_EMPTY, 1);
  if (!standing && (Atomics.load(state, W_IER) & IER_THRI) !== 0) irq.trigger();
}

/** MSR bits 4-7 for an MCR value: a terminal that is always there, or in loopback the MCR outputs. */
function modemLines(mcr: number): number {
  if ((mcr & MCR_LOOP) === 0) return MSR_DCD | MSR_DSR | MSR_CTS;
  let lines = 0;
  if ((mcr & MCR_RTS) !== 0) lines |= MSR_CTS;
  if ((mcr & MCR_DTR) !== 0) lines |= MSR_DSR;
  if ((mcr & MCR_OUT1) !== 0) lines |= MSR_RI;
  if ((mcr & MCR_OUT2) !== 0) lines |= MSR_DCD;
  return lines;
}
