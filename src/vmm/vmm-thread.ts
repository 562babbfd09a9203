/**
 * The vmm thread: every device's back end runs here, one at a time, and it sleeps in epoll_wait when there is
 * nothing to do.
 */

import { I8042_GSI, SERIAL_GSI } from "../boot/layout.ts";
import { I8042Back } from "../devices/legacy/i8042.ts";
import { SerialBack } from "../devices/legacy/serial.ts";
import { DiskShare } from "../devices/virtio/block/disk-share.ts";
import type { VirtioDevice } from "../devices/virtio/device.ts";
import { createMmio, type MmioBack } from "../devices/virtio/mmio/back.ts";
import { QUEUE_NOTIFY } from "../devices/virtio/mmio/registers.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import type { Mmds, MmdsConfig } from "../mmds/mmds.ts";
import { Logger } from "../observe/logger.ts";
import { EPOLLIN, Epoll } from "../platform/epoll.ts";
import { EventFd } from "../platform/eventfd.ts";
import { type Backend, loadBackend } from "./backend.ts";
import type { DeviceMetrics, VmmCommand } from "./commands.ts";
import {
  CONTROL_COMMAND,
  CONTROL_CTRL_ALT_DEL,
  CONTROL_MESSAGE,
  CONTROL_STOP,
  Doorbell,
  SLOT_CONTROL,
  SLOT_MAILBOX,
  SLOT_SERIAL,
  SLOT_VIRTIO,
} from "./doorbell.ts";
import { Garbage } from "./garbage.ts";
import type { MachinePlan, VirtioDevicePlan } from "./machine.ts";
import { Mailbox } from "./mailbox.ts";
import type { VmmEvent } from "./messages.ts";
import { ProgramConsole } from "./program-console.ts";
import { SerialPort } from "./serial-port.ts";
import { Timers } from "./timers.ts";
import { type DeviceServices, VirtioDevices } from "./virtio-devices.ts";

/** After work, before the event loop gets a turn, in ms. */
const FIRST_SLEEP = 10;
/** With work, until the event loop gets a turn, in ms. */
const BUSY_TIME = 100;
/** Turns with work in a row before descriptors get a look. */
const MAX_BUSY_TURNS = 32;

/** Builds all devices. `nextCommand` gives the next of what the main thread asks for, after it rang. */
export async function createVmmThread(
  plan: MachinePlan,
  post: (event: VmmEvent) => void,
  nextCommand: () => VmmCommand | undefined,
): Promise<VmmThread> {
  const kinds = new Set(plan.virtio.map(({ device }) => device.kind));
  const hasAsync = plan.virtio.some(({ device }) => device.kind === "block" && device.ioEngine === "Async");
  const [backend, mmds, net, vsock, balloon, asyncDisks] = await Promise.all([
    loadBackend(plan.backend),
    plan.mmds === undefined ? undefined : createMmds(plan.mmds),
    kinds.has("net") ? import("./net-device.ts") : undefined,
    kinds.has("vsock") ? import("./vsock-device.ts") : undefined,
    kinds.has("balloon") ? import("./balloon-device.ts") : undefined,
    hasAsync ? import("./async-disk.ts") : undefined,
  ]);
  const rare = {
    mmds,
    makeNet: net?.makeNet,
    makeVsock: vsock?.makeVsock,
    makeBalloon: balloon?.makeBalloon,
    asyncDisks,
  };
  return new VmmThread(plan, backend, post, nextCommand, rare);
}

/** Few machines have metadata. */
async function createMmds(config: MmdsConfig): Promise<Mmds> {
  const { Mmds } = await import("../mmds/mmds.ts");
  return new Mmds(config);
}

/** A vCPU that the thread of the devices runs itself, instead of sleeping. */
export interface ResidentVcpu {
  /** It may run, and it runs on this thread. */
  readonly runsHere: boolean;
  /** It makes so much work for the devices that the two of them are better off on two threads. */
  readonly wantsThread: boolean;
  /**
   * Runs the guest until a signal comes, `leave` says so, or it ends. After each exit `serve` does what has come up for
   * the devices, and returns true if there was something; then `leave` is asked.
   */
  runHere(serve: () => boolean, leave: () => boolean): void;
  /** Gives it a thread of its own. */
  moveOut(): void;
}

export class VmmThread {
  private readonly epoll = new Epoll();
  private readonly timers = new Timers();
  private readonly devices: VirtioDevices;
  private readonly doorbell: Doorbell;
  private readonly mailboxes: Mailbox[];
  private readonly serial: SerialPort;
  private readonly keyboard: I8042Back;
  private readonly virtio: MmioBack[] = [];
  private readonly log: Logger;
  private program: ProgramConsole | undefined;
  private stopping = false;
  private busyTurns = 0;
  private readonly garbage = new Garbage();
  /** There is something that only the event loop of this thread can do. */
  private eventLoopDue = false;
  /** The event loop had a turn, and nothing was done since. */
  private eventLoopIdle = false;

  /** See {@link createVmmThread}. */
  constructor(
    plan: MachinePlan,
    backend: Backend,
    private readonly post: (event: VmmEvent) => void,
    private readonly nextCommand: () => VmmCommand | undefined,
    rare: Omit<DeviceServices, "epoll" | "timers" | "log">,
  ) {
    this.log = new Logger(plan.log, "fc_vmm");
    const { shared } = plan;
    const wake = new EventFd(plan.wakeFd);
    this.epoll.watch(wake.fd, EPOLLIN, () => wake.clear());
    this.doorbell = new Doorbell(shared, plan.doorbell, wake);
    this.mailboxes = plan.mailboxes.map((offset, i) => new Mailbox(shared, offset, i, this.doorbell));

    this.devices = new VirtioDevices({
      epoll: this.epoll,
      timers: this.timers,
      log: (message) => this.log.warn(message),
      ...rare,
    });
    const irqLine = (gsi: number) => backend.irqLine(plan.memory, gsi);
    const serialBack = new SerialBack(shared, plan.serialOffset, irqLine(SERIAL_GSI));
    this.serial = new SerialPort(this.epoll, plan.serial, serialBack, this.timers, (what) =>
      this.log.warn(what),
    );
    this.keyboard = new I8042Back(shared, plan.i8042Offset, irqLine(I8042_GSI));

    const memory = new GuestMemory(plan.ram);
    const hook = backend.writeHook(plan.memory);
    if (hook !== undefined) memory.setWriteHook(hook);
    const slowGuest = backend.slowGuest === true;
    for (const [i, { device, gpa, offset, gsi, share }] of plan.virtio.entries()) {
      const slot = SLOT_VIRTIO + i;
      const diskShare = slowGuest && share !== undefined ? new DiskShare(shared, share) : undefined;
      const requeue = (queue: number) => this.doorbell.ring(slot, queue);
      const back = createMmio(shared, offset, this.createDevice(device, diskShare), memory, irqLine(gsi), {
        log: (message) => this.log.warn(message),
        requeue,
        slowGuest,
        served: (chains) => this.garbage.add(chains),
      });
      this.virtio.push(back);
      for (const queue of back.device.queueSizes.keys()) {
        const event = backend.ioEvent?.(plan.memory, gpa + QUEUE_NOTIFY, queue);
        if (event === undefined) continue;
        this.epoll.watch(event.fd, EPOLLIN, () => {
          event.clear();
          back.notify(queue);
        });
      }
    }
  }

  private createDevice(plan: VirtioDevicePlan, share: DiskShare | undefined): VirtioDevice {
    if (plan.kind === "console") {
      this.program = new ProgramConsole(this.epoll, plan.program, this.post);
      return this.program.device;
    }
    return this.devices.create(plan, share);
  }

  get metrics(): DeviceMetrics {
    return { ...this.devices.metrics, uart: this.serial.metrics };
  }

  /** Last of the serial output, if the plan wants it kept. */
  get consoleTail(): string {
    return this.serial.tailText;
  }

  /** Serves the devices until {@link CONTROL_STOP} rings and all output is flushed. */
  run(): void {
    const turns = this.turns(-1);
    while (!turns.next().done);
  }

  /**
   * Does the same, and yields when the event loop of the thread should have a turn: there was a signal, a message or a
   * command, or it did not have one for a while, which is `longest` ms if nothing goes on (-1: that does not count).
   */
  *turns(longest: number, resident?: ResidentVcpu): Generator<void, void, void> {
    let last = performance.now();
    this.serial.input?.resume();
    while (!this.stopping) {
      this.turn(longest, resident);
      if (this.eventLoopDue || (longest >= 0 && performance.now() - last >= BUSY_TIME)) {
        this.eventLoopDue = false;
        this.eventLoopIdle = true;
        yield;
        last = performance.now();
      }
    }
    for (const input of [this.serial.input, this.program?.input]) input?.stop();
    this.serveAll();
    while (this.serial.hasOutput || this.program?.hasOutput) {
      if (!this.epoll.wait(longest)) yield;
      this.serveAll();
    }
    this.serial.close();
    this.program?.close();
    this.devices.close();
    this.epoll.close();
  }

  private turn(longest: number, resident?: ResidentVcpu): void {
    if (this.serve()) {
      this.eventLoopIdle = false;
      if (this.stopping) return;
      // No waiting for more: while this thread spins it sees no descriptor, and the host's programs lack its processor.
      if (++this.busyTurns < MAX_BUSY_TURNS && this.doorbell.rung) return;
    }
    this.busyTurns = 0;
    const pump = this.pumpInputs();
    if (resident?.runsHere) {
      if (this.eventLoopDue) return;
      if (!this.mustWait && !resident.wantsThread) {
        this.runResident(resident);
        return;
      }
      resident.moveOut();
    }
    this.doorbell.sleep((mayBlock) => {
      const mayWait = mayBlock && !pump && !this.eventLoopDue;
      // A signal that came while this thread was busy does not end its sleep, so the first one is short.
      const limit = longest < 0 || this.eventLoopIdle ? longest : FIRST_SLEEP;
      const quiet = !this.epoll.wait(mayWait ? shorter(this.timers.timeout, limit) : 0);
      if (!quiet || this.timers.timeout === 0) this.eventLoopIdle = false;
      // A signal, or time is up; with nothing to wait for that means no more than that nothing is there.
      else if (mayWait) this.eventLoopDue = true;
    });
    this.timers.fire();
    this.garbage.collect();
  }

  /** Something comes to a descriptor, or with time, of which only a thread that waits for it hears. */
  private get mustWait(): boolean {
    return this.serial.hasOutput || this.serial.input?.isOpen === true || this.timers.timeout >= 0;
  }

  private runResident(resident: ResidentVcpu): void {
    // Nobody else has work for this thread, so between two exits there is none.
    resident.runHere(
      () => this.serve(),
      () => this.doorbell.rung || this.stopping || this.eventLoopDue || this.mustWait,
    );
    // Otherwise it was a signal.
    if (!this.doorbell.rung && !this.mustWait) this.eventLoopDue = true;
  }

  /** Reads input that is always ready. True if there is more of it. */
  private pumpInputs(): boolean {
    let more = false;
    for (const input of [this.serial.input, this.program?.input]) {
      if (input?.wantsPump) {
        input.pump();
        more ||= input.wantsPump;
      }
    }
    return more;
  }

  private serveAll(): void {
    while (this.serve());
  }

  /** Does all that rang. True if there was something. */
  private serve(): boolean {
    const slots = this.doorbell.takeSlots();
    if (slots === 0) return false;
    for (let rest = slots; rest !== 0; rest &= rest - 1) {
      const slot = 31 - Math.clz32(rest & -rest);
      this.serveSlot(slot, this.doorbell.takeBits(slot));
    }
    return true;
  }

  private serveSlot(slot: number, bits: number): void {
    if (slot === SLOT_CONTROL) {
      if (bits & (1 << CONTROL_CTRL_ALT_DEL) && !this.keyboard.sendCtrlAltDel()) {
        this.log.warn("Ctrl-Alt-Del not sent: the guest does not read its keyboard.");
      }
      if (bits & (1 << CONTROL_COMMAND)) this.serveCommands();
      if (bits & ((1 << CONTROL_COMMAND) | (1 << CONTROL_MESSAGE))) this.eventLoopDue = true;
      if (bits & (1 << CONTROL_STOP)) this.stopping = true;
      return;
    }
    if (slot === SLOT_SERIAL) {
      this.serial.serve();
      return;
    }
    for (let rest = bits; rest !== 0; rest &= rest - 1) {
      const bit = 31 - Math.clz32(rest & -rest);
      if (slot === SLOT_MAILBOX) this.mailboxes[bit]?.serve((device, ...call) => this.call(device, call));
      else this.virtio[slot - SLOT_VIRTIO]?.notify(bit);
    }
  }

  private serveCommands(): void {
    for (let command = this.nextCommand(); command !== undefined; command = this.nextCommand()) {
      const { sequence, request } = command;
      const done = this.devices.serve(request);
      const { metrics } = this;
      this.post({
        kind: "reply",
        reply: { sequence, done, metrics, balloon: this.devices.balloonState },
      });
    }
  }

  private call(device: number, [command, arg0, arg1]: [number, number, number]): void {
    this.virtio[device]?.handle(command, arg0, arg1);
  }
}

/** Of two waits in ms, where a negative one has no end. */
function shorter(a: number, b: number): number {
  return a < 0 ? b : b < 0 ? a : Math.min(a, b);
}
