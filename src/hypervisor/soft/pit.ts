/**
 * The 8254 interval timer of a PC (Intel 8254 data sheet, 231164) and the system control port 0x61 (Intel 82371AB
 * data sheet, 290562, 4.2.2). Counters are not ticked: count and output follow from the time since a counter started.
 *
 * A count is loaded when its last byte is written, not at the clock pulse after that.
 */

/** Input clock of the counters, Hz. */
export const PIT_HZ = 1_193_182;
const NS_PER_SECOND = 1e9;

const COUNTER_0 = 0x40;
const CONTROL_WORD = 0x43;
const SYSTEM_CONTROL = 0x61;

/** Control word: counter, and which bytes of a count are read and written. */
const CW_COUNTER_SHIFT = 6;
const CW_RW_SHIFT = 4;
const CW_RW = 3;
const CW_MODE_SHIFT = 1;
const CW_MODE = 7;
const CW_BCD = 1;
/** In the place of the counter: the read-back command, whose other bits are these. */
const READ_BACK = 3;
const READ_BACK_NO_COUNT = 0x20;
const READ_BACK_NO_STATUS = 0x10;
/** In the place of RW: counter latch command. */
const RW_LATCH = 0;
const RW_LSB = 1;
const RW_MSB = 2;

const STATUS_OUT = 0x80;
const STATUS_NULL_COUNT = 0x40;

/** System control port: gate of counter 2 and speaker, refresh clock, OUT of counter 2. */
const GATE_2 = 0x01;
const SPEAKER = 0x02;
const REFRESH = 0x10;
const OUT_2 = 0x20;
/** The refresh clock changes every 15 us on a PC; every 2^14 ns are near enough for those who wait for it. */
const REFRESH_SHIFT = 14n;

/** Host time, ns. */
type Now = () => bigint;

const INTERRUPT_ON_TERMINAL_COUNT = 0;
const HARDWARE_ONE_SHOT = 1;
const RATE_GENERATOR = 2;
const SQUARE_WAVE = 3;
const SOFTWARE_STROBE = 4;
const HARDWARE_STROBE = 5;

class Counter {
  private mode = INTERRUPT_ON_TERMINAL_COUNT;
  private bcd = false;
  private rw = RW_LSB | RW_MSB;
  /** Loaded count, 1 to 65536; undefined until the first after a control word. */
  private count: number | undefined;
  /** Written to a running counter of modes 1, 2, 3 or 5: loaded at the end of the period or at the next trigger. */
  private nextCount: number | undefined;
  /** Periods from `start` on after which that happens in modes 2 and 3. */
  private periodsLeft = 0;
  /** Time at which counting began. A stopped counter has `held` pulses behind it instead. */
  private start: bigint | undefined;
  private held = 0;
  private gate: boolean;
  private writeLow: number | undefined;
  private readHigh = false;
  private latchedCount: number | undefined;
  private latchedStatus: number | undefined;
  /** Rising edges of OUT since `start` that {@link takeEdges} has reported, and whether it owes one from before. */
  private reported = 0;
  private owed = false;

  constructor(
    private readonly now: Now,
    gate: boolean,
  ) {
    this.gate = gate;
  }

  control(word: number): void {
    const rw = (word >> CW_RW_SHIFT) & CW_RW;
    if (rw === RW_LATCH) {
      this.latchCount();
      return;
    }
    const mode = (word >> CW_MODE_SHIFT) & CW_MODE;
    // 6 and 7 are 2 and 3.
    this.mode = mode > HARDWARE_STROBE ? mode - 4 : mode;
    this.rw = rw;
    this.bcd = (word & CW_BCD) !== 0;
    this.count = undefined;
    this.nextCount = undefined;
    this.periodsLeft = 0;
    this.stop(0);
    this.writeLow = undefined;
    this.readHigh = false;
    this.latchedCount = undefined;
    this.latchedStatus = undefined;
  }

  readBack(word: number): void {
    if (!(word & READ_BACK_NO_STATUS)) {
      this.latchedStatus ??=
        (this.out ? STATUS_OUT : 0) |
        (this.count === undefined || this.nextCount !== undefined ? STATUS_NULL_COUNT : 0) |
        (this.rw << CW_RW_SHIFT) |
        (this.mode << CW_MODE_SHIFT) |
        (this.bcd ? CW_BCD : 0);
    }
    if (!(word & READ_BACK_NO_COUNT)) this.latchCount();
  }

  write(value: number): void {
    if (this.rw === RW_LSB) this.load(value);
    else if (this.rw === RW_MSB) this.load(value << 8);
    else if (this.writeLow === undefined) {
      this.writeLow = value;
      // The first byte of a count stops mode 0.
      if (this.mode === INTERRUPT_ON_TERMINAL_COUNT) {
        this.count = undefined;
        this.stop(0);
      }
    } else {
      const low = this.writeLow;
      this.writeLow = undefined;
      this.load(low | (value << 8));
    }
  }

  read(): number {
    if (this.latchedStatus !== undefined) {
      const status = this.latchedStatus;
      this.latchedStatus = undefined;
      return status;
    }
    const value = this.latchedCount ?? this.value;
    if (this.rw === RW_LSB || this.rw === RW_MSB) {
      this.latchedCount = undefined;
      return this.rw === RW_MSB ? value >> 8 : value & 0xff;
    }
    const high = this.readHigh;
    this.readHigh = !high;
    if (high) this.latchedCount = undefined;
    return high ? value >> 8 : value & 0xff;
  }

  get out(): boolean {
    const pulses = this.pulses();
    const { count } = this;
    switch (this.mode) {
      case INTERRUPT_ON_TERMINAL_COUNT:
        return count !== undefined && pulses >= count;
      case HARDWARE_ONE_SHOT:
        return this.start === undefined || count === undefined || pulses >= count;
      case RATE_GENERATOR:
        return !this.gate || count === undefined || pulses % count !== count - 1;
      case SQUARE_WAVE:
        return !this.gate || count === undefined || pulses % count < Math.ceil(count / 2);
      default:
        return this.start === undefined || count === undefined || pulses !== count;
    }
  }

  setGate(gate: boolean): void {
    if (gate === this.gate) return;
    this.gate = gate;
    if (this.mode === HARDWARE_ONE_SHOT || this.mode === HARDWARE_STROBE) {
      if (gate && this.count !== undefined) this.begin();
      return;
    }
    if (!gate) {
      if (this.start !== undefined) this.stop(this.periodic ? 0 : this.pulses());
    } else if (this.count !== undefined) {
      if (this.periodic) this.begin();
      else this.start = this.now() - nanoseconds(this.held);
    }
  }

  /** True if OUT has risen since the last call: once, however often. */
  takeEdges(): boolean {
    if (this.start === undefined) return false;
    const edges = this.edges(this.pulses());
    const risen = this.owed || edges > this.reported;
    this.reported = edges;
    this.owed = false;
    return risen;
  }

  /** Host time at which OUT rises next, or has risen; undefined: not before something is written. */
  get nextEdge(): bigint | undefined {
    const { start, count, reported } = this;
    if (start === undefined || count === undefined) return undefined;
    if (this.owed) return start;
    switch (this.mode) {
      case RATE_GENERATOR:
      case SQUARE_WAVE:
        return start + nanoseconds((reported + 1) * count);
      case SOFTWARE_STROBE:
      case HARDWARE_STROBE:
        return reported === 0 ? start + nanoseconds(count + 1) : undefined;
      default:
        return reported === 0 ? start + nanoseconds(count) : undefined;
    }
  }

  /** Rising edges of OUT in the first `pulses` since `start`. */
  private edges(pulses: number): number {
    const { count } = this;
    if (count === undefined) return 0;
    switch (this.mode) {
      case RATE_GENERATOR:
      case SQUARE_WAVE:
        return Math.floor(pulses / count);
      case SOFTWARE_STROBE:
      case HARDWARE_STROBE:
        return pulses > count ? 1 : 0;
      default:
        return pulses >= count ? 1 : 0;
    }
  }

  /** Clock pulses since `start`. Loads a count that was waiting for the end of a period. */
  private pulses(): number {
    const { start, count } = this;
    if (start === undefined) return this.held;
    const pulses = pulsesIn(this.now() - start);
    const boundary = this.periodsLeft * (count ?? 0);
    if (this.periodsLeft === 0 || pulses < boundary) return pulses;
    // Whoever reports an edge asks here first, so that at the boundary has not been.
    this.owed = true;
    this.start = start + nanoseconds(boundary);
    this.reported = 0;
    this.loadNext();
    return pulsesIn(this.now() - this.start);
  }

  /** The counting element, as it is read. */
  private get value(): number {
    const pulses = this.pulses();
    const { count } = this;
    const modulus = this.bcd ? 10_000 : 65_536;
    if (count === undefined) return 0;
    let value: number;
    if (this.mode === RATE_GENERATOR) value = count - (pulses % count);
    else if (this.mode === SQUARE_WAVE) {
      const even = count & ~1;
      value = even === 0 ? count : even - ((2 * (pulses % count)) % even);
    } else value = count - (pulses % modulus);
    value = ((value % modulus) + modulus) % modulus;
    return this.bcd ? toBcd(value) : value;
  }

  private latchCount(): void {
    this.latchedCount ??= this.value;
  }

  private load(written: number): void {
    const value = this.bcd ? fromBcd(written) : written;
    const count = value === 0 ? (this.bcd ? 10_000 : 65_536) : value;
    const triggered = this.mode === HARDWARE_ONE_SHOT || this.mode === HARDWARE_STROBE;
    if (this.start !== undefined && (triggered || this.periodic)) {
      if (this.periodic) this.periodsLeft = Math.floor(this.pulses() / (this.count ?? 1)) + 1;
      this.nextCount = count;
      return;
    }
    this.count = count;
    if (triggered) return;
    if (this.gate) this.begin();
    else this.stop(0);
  }

  private get periodic(): boolean {
    return this.mode === RATE_GENERATOR || this.mode === SQUARE_WAVE;
  }

  private loadNext(): void {
    this.count = this.nextCount ?? this.count;
    this.nextCount = undefined;
    this.periodsLeft = 0;
  }

  private begin(): void {
    this.stop(0);
    this.loadNext();
    this.start = this.now();
  }

  private stop(held: number): void {
    this.start = undefined;
    this.held = held;
    this.reported = 0;
    this.owed = false;
  }
}

/**
 * Counters 0 to 2 at ports 0x40 to 0x42, their control word at 0x43, and port 0x61. Counter 0 is the system timer,
 * counter 2 the speaker, whose output can only be read.
 */
export class Pit {
  private readonly counters: readonly [Counter, Counter, Counter];
  private speaker = 0;

  /** `now`: host time in ns, which never goes back. */
  constructor(private readonly now: Now) {
    this.counters = [new Counter(now, true), new Counter(now, true), new Counter(now, false)];
  }

  /** True if `port` is one of the timer's. */
  static owns(port: number): boolean {
    return (port & ~3) === COUNTER_0 || port === SYSTEM_CONTROL;
  }

  /** Reads a byte of a port that {@link owns} names. */
  read(port: number): number {
    if (port === SYSTEM_CONTROL) {
      const refresh = (this.now() >> REFRESH_SHIFT) & 1n ? REFRESH : 0;
      return this.speaker | refresh | (this.counters[2].out ? OUT_2 : 0);
    }
    // The control word cannot be read.
    return this.counters[port & 3]?.read() ?? 0;
  }

  /** Writes a byte to a port that {@link owns} names. */
  write(port: number, value: number): void {
    if (port === SYSTEM_CONTROL) {
      this.speaker = value & (GATE_2 | SPEAKER);
      this.counters[2].setGate((value & GATE_2) !== 0);
    } else if (port !== CONTROL_WORD) {
      this.counters[port & 3]?.write(value);
    } else if (value >> CW_COUNTER_SHIFT === READ_BACK) {
      for (const [i, counter] of this.counters.entries()) if (value & (2 << i)) counter.readBack(value);
    } else {
      this.counters[value >> CW_COUNTER_SHIFT]?.control(value);
    }
  }

  /** Host time in ns at which OUT of counter 0 rises next, if it runs. */
  get nextEdge(): bigint | undefined {
    return this.counters[0].nextEdge;
  }

  /** True if OUT of counter 0 has risen since the last call. Edges missed meanwhile are not made up for. */
  takeEdges(): boolean {
    return this.counters[0].takeEdges();
  }
}

function pulsesIn(ns: bigint): number {
  return Math.floor((Number(ns) * PIT_HZ) / NS_PER_SECOND);
}

function nanoseconds(pulses: number): bigint {
  return BigInt(Math.ceil((pulses * NS_PER_SECOND) / PIT_HZ));
}

function fromBcd(value: number): number {
  let number = 0;
  for (let shift = 12; shift >= 0; shift -= 4) number = number * 10 + Math.min(9, (value >> shift) & 15);
  return number;
}

function toBcd(value: number): number {
  let bcd = 0;
  for (let shift = 0, rest = value; shift < 16; shift += 4, rest = Math.floor(rest / 10)) {
    bcd |= (rest % 10) << shift;
  }
  return bcd;
}
