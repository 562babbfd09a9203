/**
 * Seeded mutation fuzzing of a virtio device: valid requests with fields replaced by hostile values, hostile ring
 * indices and registers, and resets in the middle. After each mutation it checks that no exception escaped,
 * that nothing outside guest RAM changed, and that every change to guest RAM was reported to the write hook.
 */

import type { GuestMemory } from "../../../memory/guest-memory.ts";
import type { VirtioDevice } from "../device.ts";
import * as reg from "../mmio/registers.ts";
import { type BufferSpec, type DriverQueue, F_INDIRECT, TestDriver, type VcpuSide } from "./driver.ts";

export const FUZZ_RAM_BYTES = 128 * 1024;
const RAM_BYTES = FUZZ_RAM_BYTES;

/** Mutations per device: SPARKLER_FUZZ, or 20,000. */
export const FUZZ_COUNT = Number(process.env.SPARKLER_FUZZ ?? 20_000);

/** xorshift32. */
export class Random {
  private state: number;

  constructor(seed: number) {
    this.state = seed | 0 || 1;
  }

  /** An integer from 0 to `limit` - 1. */
  below(limit: number): number {
    this.state ^= this.state << 13;
    this.state ^= this.state >>> 17;
    this.state ^= this.state << 5;
    return Math.floor(((this.state >>> 0) / 2 ** 32) * limit);
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)]!;
  }

  chance(oneIn: number): boolean {
    return this.below(oneIn) === 0;
  }
}

export interface FuzzTarget {
  readonly seed: number;
  device(): VirtioDevice;
  /** A valid request for `queue`. Buffers come from the driver's allocator. */
  request(random: Random, driver: TestDriver, queue: number): BufferSpec[];
  /** Something that happens on the host's side. */
  host?(random: Random, device: VirtioDevice): void;
  /** The last {@link FUZZ_RAM_BYTES} of this memory are used instead of memory that begins at 0 and has guards. */
  readonly memory?: GuestMemory;
  readonly vcpu?: VcpuSide;
}

export interface FuzzResult {
  mutations: number;
  /** Requests that the device completed, times it asked for a reset, and resets by the driver. */
  completed: number;
  needsReset: number;
  resets: number;
}

const ADDRESSES: readonly bigint[] = [
  0n,
  1n,
  8n,
  BigInt(RAM_BYTES - 16),
  BigInt(RAM_BYTES - 1),
  BigInt(RAM_BYTES),
  0xbfff_ffffn,
  0xc000_0000n,
  0xffff_fff0n,
  0x1_0000_0000n,
  1n << 53n,
  (1n << 63n) - 1n,
  (1n << 64n) - 1n,
];
const LENGTHS = [0, 1, 15, 16, 17, 24, 512, RAM_BYTES, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff];
const SIZES = [0, 1, 2, 3, 255, 256, 1024, 32768, 65535, 65536, 0xffffffff];
const REGISTERS = Array.from({ length: 0x120 / 4 }, (_, i) => 4 * i);

class Fuzzer {
  private readonly random: Random;
  private readonly device: VirtioDevice;
  private readonly driver: TestDriver;
  /** Guest-physical address of what the driver uses. */
  private readonly start: number;
  private readonly ram: Buffer;
  private readonly shadow = Buffer.alloc(RAM_BYTES);
  private readonly guardCheckEvery = 64;
  readonly result: FuzzResult = { mutations: 0, completed: 0, needsReset: 0, resets: 0 };

  constructor(private readonly target: FuzzTarget) {
    this.random = new Random(target.seed);
    this.device = target.device();
    const { memory } = target;
    this.start = memory === undefined ? 0 : memory.end - RAM_BYTES;
    const place = memory === undefined ? undefined : { memory, start: this.start };
    this.driver = TestDriver.start(this.device, { ramBytes: RAM_BYTES, place, vcpu: target.vcpu });
    const bytes = this.driver.ram(this.start, RAM_BYTES);
    this.ram = Buffer.from(bytes.buffer, bytes.byteOffset, RAM_BYTES);
  }

  run(count: number): FuzzResult {
    for (; this.result.mutations < count; this.result.mutations++) {
      try {
        this.mutate();
      } catch (error) {
        throw new Error(`seed ${this.target.seed}, mutation ${this.result.mutations}: ${String(error)}`, {
          cause: error,
        });
      }
    }
    if (!this.driver.guardsIntact()) throw new Error("memory outside guest RAM was written");
    return this.result;
  }

  private mutate(): void {
    const { driver, random, result } = this;
    if (driver.needsReset) {
      result.needsReset++;
      this.restart();
    } else if (driver.queues.length === 0 || random.chance(200)) {
      this.restart();
    }
    const mark = driver.allocated;
    const action = random.below(16);
    if (action < 11) this.hostileRequest(random.pick(driver.queues));
    else if (action === 11) this.hostileIndices(random.pick(driver.queues));
    else if (action === 12) this.hostileRegister();
    else if (action === 13) this.hostileSetUp();
    else this.checked(() => this.target.host?.(random, this.device));
    for (const queue of driver.queues) result.completed += queue.takeUsed().length;
    driver.release(mark);
    if (result.mutations % this.guardCheckEvery === 0 && !driver.guardsIntact()) {
      throw new Error("memory outside guest RAM was written");
    }
  }

  private restart(): void {
    this.result.resets++;
    this.driver.start();
  }

  private hostileRequest(queue: DriverQueue): void {
    const { driver, random } = this;
    const buffers = this.target.request(random, driver, queue.index);
    if (buffers.length > queue.freeDescriptors) {
      this.restart();
      return;
    }
    const head = queue.add(buffers);
    for (let hits = random.below(4); hits > 0; hits--) {
      const index = random.chance(2) ? head : random.below(queue.size);
      const at = queue.desc - this.start + 16 * index;
      const view = new DataView(this.ram.buffer, this.ram.byteOffset + at, 16);
      switch (random.below(6)) {
        case 0:
          view.setBigUint64(0, this.hostileAddress(), true);
          break;
        case 1:
          view.setUint32(8, random.pick(LENGTHS), true);
          break;
        case 2:
          view.setUint16(12, random.pick([0, 1, 2, 3, 4, 5, 6, 7, 0xffff]), true);
          break;
        case 3:
          view.setUint16(14, random.pick([head, 0, random.below(queue.size), queue.size, 0xffff]), true);
          break;
        case 4:
          this.hostileIndirect(queue, index);
          break;
        default:
          this.ram[random.below(RAM_BYTES)] = random.below(256);
      }
    }
    this.checked(() => queue.notify());
  }

  private hostileIndirect(queue: DriverQueue, index: number): void {
    const { random } = this;
    const table = this.start + random.below(RAM_BYTES - 64);
    for (let i = 0; i < 4; i++) {
      queue.writeDescriptor(
        table,
        i,
        this.start + random.below(RAM_BYTES),
        random.pick(LENGTHS),
        random.below(8),
        random.below(6),
      );
    }
    const gpa = random.chance(4) ? this.hostileAddress() : BigInt(table);
    queue.writeDescriptor(queue.desc, index, gpa, random.pick([...LENGTHS, 64]), F_INDIRECT, 0);
  }

  private hostileAddress(): bigint {
    const address = this.random.pick(ADDRESSES);
    return address < 1n << 53n ? BigInt(this.start) + address : address;
  }

  private hostileIndices(queue: DriverQueue): void {
    const { random } = this;
    if (random.chance(2)) queue.setAvailIdx(random.below(0x10000));
    else queue.publish(random.pick([0, random.below(queue.size), queue.size, 0xffff]));
    queue.wantInterrupt(random.chance(2));
    this.checked(() => queue.notify());
  }

  private hostileRegister(): void {
    const { driver, random } = this;
    const offset = random.chance(8) ? random.below(0x1000) : random.pick(REGISTERS);
    const size = random.pick([1, 2, 4, 4, 4]);
    const value = random.chance(2) ? random.pick(LENGTHS) : random.below(40);
    this.checked(() => driver.front.write(offset, size, value));
    const read = driver.front.read(random.below(0x1000), size);
    if (!(Number.isInteger(read) && read >= 0 && read <= 0xffffffff)) throw new Error(`read gave ${read}`);
    // The driver's own view of the device is worth nothing after this.
    if (random.chance(2)) this.restart();
  }

  /** DRIVER_OK with a queue of a bad size, or rings in bad places, or kicked in the wrong state. */
  private hostileSetUp(): void {
    const { driver, random } = this;
    this.checked(() => driver.reset());
    if (random.chance(2)) driver.negotiate();
    else driver.write(reg.STATUS, random.below(256));
    this.device.queueSizes.forEach((_, index) => {
      driver.setUpQueue(index);
    });
    driver.write(reg.QUEUE_SEL, random.below(this.device.queueSizes.length + 1));
    driver.write(reg.QUEUE_READY, 0);
    for (let hits = 1 + random.below(3); hits > 0; hits--) {
      const where = random.pick([reg.QUEUE_DESC_LOW, reg.QUEUE_DRIVER_LOW, reg.QUEUE_DEVICE_LOW]);
      if (random.chance(2)) driver.write(reg.QUEUE_NUM, random.pick(SIZES));
      else driver.writeAddress(where, Number(this.hostileAddress()));
    }
    driver.write(reg.QUEUE_READY, 1);
    this.checked(() => driver.addStatus(reg.STATUS_DRIVER_OK));
    for (const queue of driver.queues) this.checked(() => queue.notify());
    if (driver.needsReset) this.result.needsReset++;
    this.checked(() => driver.reset());
  }

  /** Runs something that may make the device write, and checks that each change was reported. */
  private checked(action: () => void): void {
    const { driver, ram, shadow } = this;
    driver.reported.length = 0;
    ram.copy(shadow);
    action();
    for (const { gpa, length } of driver.reported) {
      // RAM before what the driver uses is not looked at.
      const at = Math.max(gpa - this.start, 0);
      ram.copy(shadow, at, at, Math.max(gpa + length - this.start, 0));
    }
    if (!ram.equals(shadow)) {
      const at = ram.findIndex((byte, i) => byte !== shadow[i]);
      throw new Error(`write to 0x${at.toString(16)} was not reported`);
    }
  }
}

/** Runs `count` mutations. Throws with seed and number of the mutation that broke a rule. */
export function fuzzDevice(target: FuzzTarget, count = FUZZ_COUNT): FuzzResult {
  return new Fuzzer(target).run(count);
}
