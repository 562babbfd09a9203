/** One port of a multiport console: a byte stream each way between a guest program and the host. */

import type { DescriptorChain } from "../chain.ts";
import { type DeviceQueue, STOP } from "../device.ts";

/** The host's end of a port. Callbacks run on the vmm thread. */
export interface PortHandler {
  /**
   * The guest wrote `bytes`, a view of guest RAM that is valid only during the call. False: not taken; the same
   * bytes are offered again after {@link ConsolePort.resume}, and the guest's writes wait. Without this method the
   * guest's output is dropped.
   */
  onData?(bytes: Uint8Array): boolean;
  /** There may be room for {@link ConsolePort.write} now. */
  onWritable?(): void;
  /** A guest program opened the port, or closed it after all it wrote was taken. */
  onGuestOpen?(open: boolean): void;
}

/** Control messages that the device still owes the guest about this port. */
export interface OwedMessages {
  add: boolean;
  open: boolean;
  name: boolean;
}

export class ConsolePort {
  readonly encodedName: Uint8Array;
  readonly owed: OwedMessages = { add: false, open: false, name: false };
  private handler: PortHandler | undefined;
  private receiveQueue: DeviceQueue | undefined;
  private transmitQueue: DeviceQueue | undefined;
  private hostIsOpen = true;
  private guestIsOpen = false;
  private guestIsReady = false;
  /** The guest closed the port while output waited for the host. */
  private closePending = false;
  /** Bytes of the first waiting transmit chain that the host has taken already. */
  private taken = 0;
  /** What `write` still has to place, during one pass over the receive queue. */
  private outgoing: Uint8Array = new Uint8Array(0);
  private wantsRoom = false;

  /**
   * @param id port number; Linux names it /dev/vport<device>p<id>.
   * @param name shown in /sys/class/virtio-ports/vport<device>p<id>/name.
   * @param sendOwed makes the device send what is owed.
   */
  constructor(
    readonly id: number,
    readonly name: string,
    private readonly sendOwed: () => void,
  ) {
    this.encodedName = new TextEncoder().encode(name);
  }

  /** Sets the host's end. Until then output waits and input finds no room for want of a guest program. */
  connect(handler: PortHandler): void {
    this.handler = handler;
    this.resume();
  }

  /** True while a guest program has the port open. */
  get guestOpen(): boolean {
    return this.guestIsOpen;
  }

  /** False after {@link close}. */
  get hostOpen(): boolean {
    return this.hostIsOpen;
  }

  /**
   * Gives input to the guest program; returns how many bytes were taken. None are while no program has the port
   * open or the port is closed. If not all were taken, `onWritable` says when to try again.
   */
  write(bytes: Uint8Array): number {
    if (!this.hostIsOpen || bytes.length === 0) return 0;
    this.wantsRoom = true;
    if (!this.guestIsOpen || this.receiveQueue === undefined) return 0;
    this.outgoing = bytes;
    this.receiveQueue.serve((chain) => this.fill(chain));
    const accepted = bytes.length - this.outgoing.length;
    if (this.outgoing.length === 0) this.wantsRoom = false;
    this.outgoing = new Uint8Array(0);
    return accepted;
  }

  /** Takes output again after `onData` returned false. */
  resume(): void {
    this.transmit();
  }

  /** Ends the guest program's input: when it has read what was written, it sees the end of the file. */
  close(): void {
    if (!this.hostIsOpen) return;
    this.hostIsOpen = false;
    this.wantsRoom = false;
    this.oweOpen();
  }

  /** Undoes {@link close}. */
  open(): void {
    if (this.hostIsOpen) return;
    this.hostIsOpen = true;
    this.oweOpen();
  }

  /** Device: the driver is up. Without MULTIPORT (`multiport` false) a port is open from the start. */
  activate(receive: DeviceQueue, transmit: DeviceQueue, multiport: boolean): void {
    this.receiveQueue = receive;
    this.transmitQueue = transmit;
    if (!multiport) this.setGuestOpen(true);
  }

  /** Device: the driver is gone. */
  reset(): void {
    this.receiveQueue = undefined;
    this.transmitQueue = undefined;
    this.owed.add = false;
    this.owed.open = false;
    this.owed.name = false;
    this.taken = 0;
    this.guestIsReady = false;
    this.closePending = false;
    if (this.guestIsOpen) {
      this.guestIsOpen = false;
      this.handler?.onGuestOpen?.(false);
    }
  }

  /** Device: PORT_READY from the guest. */
  portReady(): void {
    this.guestIsReady = true;
    // In this order, since a program that finds the port by its name must find it open.
    this.owed.open = true;
    this.owed.name = this.encodedName.length > 0;
  }

  /** Device: PORT_OPEN from the guest. */
  setGuestOpen(open: boolean): void {
    if (open) {
      this.closePending = false;
      if (this.guestIsOpen) return;
      this.guestIsOpen = true;
      this.handler?.onGuestOpen?.(true);
      this.receive();
    } else if (this.guestIsOpen) {
      // What the program wrote before it closed may still be in the queue.
      this.closePending = true;
      this.transmit();
    }
  }

  /** Device: the guest made room in the receive queue. */
  receive(): void {
    if (this.wantsRoom && this.guestIsOpen && this.receiveQueue !== undefined) {
      this.wantsRoom = false;
      this.handler?.onWritable?.();
    }
  }

  /** Device: the guest wrote. */
  transmit(): void {
    const ended = this.transmitQueue?.serve((chain) => this.take(chain));
    if (this.closePending && (ended === "empty" || ended === "failed")) {
      this.closePending = false;
      this.guestIsOpen = false;
      this.handler?.onGuestOpen?.(false);
    }
  }

  private oweOpen(): void {
    if (!this.guestIsReady) return;
    this.owed.open = true;
    this.sendOwed();
  }

  private fill(chain: DescriptorChain): number | typeof STOP {
    if (this.outgoing.length === 0) return STOP;
    const count = chain.write(this.outgoing);
    this.outgoing = this.outgoing.subarray(count);
    return count;
  }

  private take(chain: DescriptorChain): number | typeof STOP {
    const { handler } = this;
    if (handler === undefined) return STOP;
    let skip = this.taken;
    for (const buffer of chain.readable) {
      if (skip >= buffer.length) {
        skip -= buffer.length;
        continue;
      }
      const bytes = skip === 0 ? buffer.bytes : buffer.bytes.subarray(skip);
      if (handler.onData?.(bytes) === false) return STOP;
      this.taken += bytes.length;
      skip = 0;
    }
    this.taken = 0;
    return 0;
  }
}
