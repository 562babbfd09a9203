/**
 * A CPU backend that executes no instructions: it plays the guest's kernel through the buses, by the script that
 * the kernel command line names (`script=NAME`). Loaded by the real worker threads.
 */

import { VIRTIO_ID_BALLOON, VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE } from "../../src/devices/virtio/device.ts";
import { CONFIG, DEVICE_ID } from "../../src/devices/virtio/mmio/registers.ts";
import type { BootRegisters, VcpuEnd } from "../../src/hypervisor/types.ts";
import { GuestMemory } from "../../src/memory/guest-memory.ts";
import type { Backend, Vcpu, VcpuOptions } from "../../src/vmm/backend.ts";
import { listenLate } from "./deaf-guest.ts";
import { GuestDriver } from "./guest-driver.ts";
import type { GuestParts } from "./guest-parts.ts";
import { breakAllDevices } from "./hostile-guest.ts";

/** Words at the start of the memory, below guest RAM: [0] counts events, [1] asks to stop, [2+gsi] interrupts. */
const EVENTS = 0;
const STOP = 1;
const IRQS = 2;
/** 1: asked to pause; 2: paused. */
const PAUSE = 40;
const PAGE = 65536;
const BASE = PAGE;

const CMDLINE = 0x2_0000;
const WINDOW = 0xc000_1000;
const RINGS = 0x40_0000;
const DATA = 0x50_0000;
const SERIAL = 0x3f8;
const I8042_COMMAND = 0x64;

const MIB = 2 ** 20;
/** Memory that the balloon's script gives away. */
const BALLOONED = 16 * MIB;

/** Where the balloon is, behind drives and network interfaces. */
function balloonWindow(mmio: VcpuOptions["mmio"]): number {
  for (let window = WINDOW; ; window += 0x1000) {
    if (mmio.read(window + DEVICE_ID, 4) === VIRTIO_ID_BALLOON) return window;
    if (mmio.read(window, 4) === 0) throw new Error("there is no balloon");
  }
}

const words = (memory: WebAssembly.Memory) => new Int32Array(memory.buffer, 0, 64);

function event(memory: WebAssembly.Memory): void {
  Atomics.add(words(memory), EVENTS, 1);
  Atomics.notify(words(memory), EVENTS);
}

export const backend: Backend = {
  createMemory(ramBytes) {
    const pages = (ramBytes + BASE) / PAGE;
    return { memory: new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true }), base: BASE };
  },
  irqLine: (memory, gsi) => ({
    trigger() {
      Atomics.add(words(memory), IRQS + gsi, 1);
      event(memory);
    },
  }),
  writeHook: () => undefined,
  requestStop(memory) {
    Atomics.store(words(memory), STOP, 1);
    this.requestResume(memory);
    event(memory);
  },
  requestPause(memory) {
    Atomics.store(words(memory), PAUSE, 1);
    Atomics.notify(words(memory), PAUSE);
    event(memory);
  },
  requestResume(memory) {
    Atomics.store(words(memory), PAUSE, 0);
    Atomics.notify(words(memory), PAUSE);
  },
  createVcpu: async (options) => new ScriptedVcpu(options),
};

class Stopped extends Error {}

class ScriptedVcpu implements Vcpu {
  private readonly memory: GuestMemory;
  private readonly words: Int32Array;
  private registers: BootRegisters | undefined;
  private seen = 0;

  constructor(private readonly options: VcpuOptions) {
    const { buffer } = options.memory;
    if (!(buffer instanceof SharedArrayBuffer)) throw new Error("memory is not shared");
    this.memory = new GuestMemory({ buffer, base: BASE, size: options.ramBytes });
    this.words = words(options.memory);
  }

  setBootRegisters(registers: BootRegisters): void {
    this.registers = registers;
  }

  stats(): Record<string, number> {
    return { events: Atomics.load(this.words, EVENTS) };
  }

  run(): VcpuEnd {
    try {
      return this.script(/script=(\w+)/.exec(this.commandLine())?.[1] ?? "none");
    } catch (error) {
      if (error instanceof Stopped) return { kind: "stopped" };
      return { kind: "error", detail: `script failed: ${error instanceof Error ? error.stack : error}` };
    }
  }

  private script(name: string): VcpuEnd {
    switch (name) {
      case "block":
        this.block();
        return this.reset();
      case "hostile":
        breakAllDevices(this.parts());
        return this.reset();
      case "deaf":
        listenLate(this.parts());
        return this.reset();
      case "watch":
        return this.watch();
      case "hang":
        this.print("up\n");
        for (;;) this.idle();
      case "count":
        for (let i = 0; ; i++) {
          this.print(`${i}\n`);
          Atomics.wait(this.words, PAUSE, 0, 5);
          if (Atomics.load(this.words, STOP) !== 0) throw new Stopped();
        }
      case "flood":
        for (let i = 0; i < 20_000; i++) this.print(`line ${String(i).padStart(6, "0")}\n`);
        return this.reset();
      case "balloon":
        return this.balloon();
      case "echo":
        this.echo();
        return this.reset();
      case "keyboard":
        this.keyboard();
        return this.reset();
      case "timer":
        for (let i = 0; i < 2; i++) this.options.mmio.write(0xc000_0000, 1, 123);
        return this.reset();
      case "triple":
        return { kind: "shutdown", detail: `rip ${this.registers?.rip.toString(16)}` };
      case "throw":
        throw new Error("on purpose");
      case "program":
        return this.program();
      case "panic":
        this.print("one\nKernel panic - not syncing: \x1b[31mout of coffee\n");
        return this.reset();
      default:
        throw new Error(`no script ${name}`);
    }
  }

  private commandLine(): string {
    const bytes = this.memory.slice(CMDLINE, 2048);
    return new TextDecoder().decode(bytes.slice(0, bytes.indexOf(0)));
  }

  /** Sleeps until an interrupt that came after the last sleep. */
  private readonly idle = () => {
    if (Atomics.wait(this.words, EVENTS, this.seen, 10_000) === "timed-out")
      throw new Error("no interrupt in 10 s");
    this.seen = Atomics.load(this.words, EVENTS);
    this.waitWhilePaused();
    if (Atomics.load(this.words, STOP) !== 0) throw new Stopped();
  };

  private waitWhilePaused(): void {
    while (Atomics.compareExchange(this.words, PAUSE, 1, 2) === 1) {
      this.options.onPaused();
      while (Atomics.load(this.words, PAUSE) === 2) Atomics.wait(this.words, PAUSE, 2);
    }
  }

  private print(text: string): void {
    const { pio } = this.options;
    this.waitWhilePaused();
    for (const byte of new TextEncoder().encode(text)) {
      while ((pio.read(SERIAL + 5, 1) & 0x20) === 0)
        if (Atomics.load(this.words, STOP) !== 0) throw new Stopped();
      pio.write(SERIAL, 1, byte);
    }
  }

  private reset(): VcpuEnd {
    this.options.pio.write(I8042_COMMAND, 1, 0xfe);
    if (Atomics.load(this.words, STOP) === 0) throw new Error("the reset line did nothing");
    return { kind: "stopped" };
  }

  private parts(): GuestParts {
    const driver = (window: number, rings: number) => this.driver(window, rings);
    const print = (text: string) => this.print(text);
    return { memory: this.memory, data: DATA, rings: RINGS, driver, idle: this.idle, print };
  }

  private driver(window: number, rings = RINGS): GuestDriver {
    return new GuestDriver(this.options.mmio, this.memory, window, rings, this.idle);
  }

  /** Writes sectors 2-9, reads them back, flushes, reads the id; a request beyond the end must fail. */
  private block(): void {
    const driver = this.driver(WINDOW);
    const flush = 1 << 9;
    driver.start(VIRTIO_ID_BLOCK, flush);
    driver.addQueue(0);
    driver.driverOk();
    const status = DATA + 16;
    const request = (type: number, sector: bigint, data: { gpa: number; length: number } | undefined) => {
      this.memory.writeU32(DATA, type);
      this.memory.writeU64(DATA + 8, sector);
      this.memory.writeU8(status, 0xff);
      const header = { gpa: DATA, length: 16 };
      const end = { gpa: status, length: 1 };
      const out = type === 1 && data !== undefined;
      driver.submit(0, out ? [header, data] : [header], data === undefined || out ? [end] : [data, end]);
      driver.waitUsed(0);
      return this.memory.readU8(status);
    };
    const from = { gpa: DATA + 4096, length: 4096 };
    const into = { gpa: DATA + 8192, length: 4096 };
    for (let i = 0; i < from.length; i++) this.memory.writeU8(from.gpa + i, (i * 7) & 0xff);
    const results = [request(1, 2n, from), request(4, 0n, undefined), request(0, 2n, into)];
    const same = Buffer.compare(
      this.memory.slice(from.gpa, from.length).slice(),
      this.memory.slice(into.gpa, into.length).slice(),
    );
    const id = { gpa: DATA + 12_288, length: 20 };
    results.push(request(8, 0n, id), request(0, driver.config64(0), into));
    // Many requests one after the other: the vmm thread sleeps and wakes in every possible place.
    for (let i = 0; i < 2000; i++) if (request(0, BigInt(i % 8), into) !== 0) results.push(99);
    const name = new TextDecoder().decode(this.memory.slice(id.gpa, id.length).slice()).replaceAll("\0", "");
    this.print(`sectors=${driver.config64(0)} status=${results} same=${same} id=${name}\n`);
  }

  /** Prints size and first byte of its drive whenever they are others. */
  private watch(): never {
    const driver = this.driver(WINDOW);
    driver.start(VIRTIO_ID_BLOCK, 0);
    driver.addQueue(0);
    driver.driverOk();
    const header = { gpa: DATA, length: 16 };
    const sector = { gpa: DATA + 4096, length: 512 };
    const status = { gpa: DATA + 16, length: 1 };
    for (let last = ""; ; ) {
      this.memory.writeU32(header.gpa, 0);
      this.memory.writeU64(header.gpa + 8, 0n);
      driver.submit(0, [header], [sector, status]);
      driver.waitUsed(0);
      const line = `${driver.config64(0)} sectors of ${String.fromCharCode(this.memory.readU8(sector.gpa))}\n`;
      if (line !== last) this.print(line);
      last = line;
      this.idle();
    }
  }

  /**
   * Fills 64 MiB from {@link BALLOONED} on, and then drives a balloon with statistics and hinting: its pages are those,
   * its free memory as it counts them, and the one page that it hints at is the last of them. Prints what it has done.
   */
  private balloon(): never {
    const driver = this.driver(balloonWindow(this.options.mmio));
    const [stats, hint] = [1 << 1, 1 << 3];
    driver.start(VIRTIO_ID_BALLOON, stats | hint);
    for (let queue = 0; queue < 4; queue++) driver.addQueue(queue);
    driver.driverOk();
    const pages = (64 * MIB) / 4096;
    for (let page = 0; page < pages; page++) this.memory.writeU8(BALLOONED + page * 4096, 1);
    const sendStatistics = (actual: number) => {
      this.memory.writeU16(DATA, 4);
      this.memory.writeU64(DATA + 2, BigInt((pages - actual) * 4096));
      driver.submit(2, [{ gpa: DATA, length: 10 }], []);
    };
    const move = (queue: number, first: number, count: number) => {
      for (let i = 0; i < count; i++) this.memory.writeU32(DATA + 4096 + 4 * i, BALLOONED / 4096 + first + i);
      driver.submit(queue, [{ gpa: DATA + 4096, length: 4 * count }], []);
      driver.waitUsed(queue);
    };
    const say = (cmd: number) => {
      this.memory.writeU32(DATA + 8192, cmd);
      driver.submit(3, [{ gpa: DATA + 8192, length: 4 }], []);
      driver.waitUsed(3);
    };
    let actual = 0;
    let run = 0;
    sendStatistics(actual);
    this.print("up\n");
    for (;;) {
      const target = Math.min(driver.read(CONFIG), pages);
      const before = actual;
      for (; actual < target; actual += Math.min(256, target - actual)) {
        move(0, actual, Math.min(256, target - actual));
      }
      for (; actual > target; actual -= Math.min(256, actual - target)) {
        const count = Math.min(256, actual - target);
        move(1, actual - count, count);
      }
      if (actual !== before) {
        driver.write(CONFIG + 4, actual);
        const kept = (page: number) => this.memory.readU8(BALLOONED + page * 4096);
        this.print(`balloon of ${actual} pages, ends ${kept(0)} ${kept(pages - 1)}\n`);
      }
      if (driver.used(2) !== undefined) sendStatistics(actual);
      const cmd = driver.read(CONFIG + 8);
      if (cmd > 1 && cmd !== run) {
        run = cmd;
        say(cmd);
        const last = { gpa: BALLOONED + (pages - 1) * 4096, length: 4096 };
        driver.submit(3, [], [last]);
        driver.waitUsed(3);
        say(0);
        this.print(`hint ${cmd}, page ${this.memory.readU8(last.gpa)}\n`);
      }
      this.idle();
    }
  }

  /** Sends serial input back until it reads a dot. */
  private echo(): void {
    const { pio } = this.options;
    pio.write(SERIAL + 1, 1, 1);
    for (;;) {
      while ((pio.read(SERIAL + 5, 1) & 1) === 0) this.idle();
      const byte = pio.read(SERIAL, 1);
      if (byte === 0x2e) return;
      this.print(String.fromCharCode(byte));
    }
  }

  /** Prints the four scan codes of Ctrl-Alt-Del. */
  private keyboard(): void {
    const { pio } = this.options;
    this.print("ready\n");
    for (let i = 0; i < 4; i++) {
      while ((pio.read(I8042_COMMAND, 1) & 1) === 0) this.idle();
      this.print(`${pio.read(0x60, 1).toString(16)} `);
    }
  }

  /** Plays the guest's init and its program: copies stdin to stdout, its length to stderr, and exits with 7. */
  private program(): VcpuEnd {
    const driver = this.driver(WINDOW);
    const multiport = 1 << 1;
    driver.start(VIRTIO_ID_CONSOLE, multiport);
    for (let queue = 0; queue < 10; queue++) driver.addQueue(queue);
    driver.driverOk();
    const CONTROL_RX = 2;
    const CONTROL_TX = 3;
    const rx = (port: number) => (port === 0 ? 0 : 2 + 2 * port);
    const tx = (port: number) => rx(port) + 1;

    const controlBuffer = { gpa: DATA, length: 128 };
    const names = new Map<string, number>();
    let stdinOpen = true;
    const send = (queue: number, bytes: Uint8Array) => {
      const buffer = { gpa: DATA + 4096, length: bytes.length };
      this.memory.write(buffer.gpa, bytes);
      driver.submit(queue, [buffer], []);
      driver.waitUsed(queue);
    };
    const sendControl = (id: number, event: number, value: number) => {
      const bytes = new Uint8Array(8);
      new DataView(bytes.buffer).setUint32(0, id, true);
      new DataView(bytes.buffer).setUint16(4, event, true);
      new DataView(bytes.buffer).setUint16(6, value, true);
      send(CONTROL_TX, bytes);
    };
    const takeControl = () => {
      const length = driver.used(CONTROL_RX);
      if (length === undefined) return false;
      const bytes = this.memory.slice(controlBuffer.gpa, length).slice();
      const view = new DataView(bytes.buffer);
      const id = view.getUint32(0, true);
      const event = view.getUint16(4, true);
      driver.submit(CONTROL_RX, [], [controlBuffer]);
      if (event === 1) sendControl(id, 3, 1);
      if (event === 7) names.set(new TextDecoder().decode(bytes.subarray(8)), id);
      if (event === 6 && names.get("sparkler.stdin") === id) stdinOpen = view.getUint16(6, true) !== 0;
      return true;
    };
    driver.submit(CONTROL_RX, [], [controlBuffer]);
    sendControl(0, 0, 1);
    while (names.size < 4) if (!takeControl()) this.idle();

    const port = (name: string) => names.get(`sparkler.${name}`)!;
    const text = (string: string) => new TextEncoder().encode(string);
    for (const id of names.values()) sendControl(id, 6, 1);
    send(tx(port("control")), text("rea"));
    send(tx(port("control")), text("dy\n"));
    const input = { gpa: DATA + 8192, length: 4096 };
    let copied = 0;
    driver.submit(rx(port("stdin")), [], [input]);
    for (;;) {
      const length = driver.used(rx(port("stdin")));
      if (length !== undefined) {
        copied += length;
        send(tx(port("stdout")), this.memory.slice(input.gpa, length).slice());
        driver.submit(rx(port("stdin")), [], [input]);
      } else if (!takeControl()) {
        if (!stdinOpen) break;
        this.idle();
      }
    }
    send(tx(port("stderr")), text(`${copied} bytes\n`));
    send(tx(port("control")), text("exit 7\n"));
    for (;;) this.idle();
  }
}
