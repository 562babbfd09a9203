/**
 * virtio-console with several ports (virtio 1.2, 5.3): carries a guest program's streams to and from the host,
 * each on a port of its own. No port is a terminal: CONSOLE_PORT is never sent.
 */

import type { DescriptorChain } from "../chain.ts";
import {
  type DeviceContext,
  type DeviceHost,
  type DeviceQueue,
  STOP,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_VERSION_1,
  VIRTIO_ID_CONSOLE,
  type VirtioDevice,
} from "../device.ts";
import {
  CONTROL_BYTES,
  decodeControl,
  encodeControl,
  VIRTIO_CONSOLE_DEVICE_READY,
  VIRTIO_CONSOLE_PORT_ADD,
  VIRTIO_CONSOLE_PORT_NAME,
  VIRTIO_CONSOLE_PORT_OPEN,
  VIRTIO_CONSOLE_PORT_READY,
} from "./control.ts";
import { ConsolePort } from "./port.ts";

export const VIRTIO_CONSOLE_F_MULTIPORT = 1n << 1n;

/** Configuration space: le16 cols, le16 rows, le32 max_nr_ports, le32 emerg_wr. */
const CONFIG_BYTES = 12;
const CONFIG_MAX_NR_PORTS = 4;

/** Queues (5.3.2): port 0's pair, the control pair, then the pairs of ports 1, 2, ... */
const CONTROL_RECEIVE = 2;
const CONTROL_TRANSMIT = 3;

/** Linux fills a receive queue with one page per entry, so its size is guest memory. */
const RECEIVE_SIZE = 32;
const TRANSMIT_SIZE = 64;

/** Most ports of one device: what the queues of one MMIO register file suffice for. */
export const MAX_PORTS = 15;
/** Most bytes of a port's name in UTF-8; it must fit a control buffer of any driver. */
export const MAX_PORT_NAME_BYTES = 64;

export class ConsoleDevice implements VirtioDevice {
  readonly name = "console";
  readonly type = VIRTIO_ID_CONSOLE;
  readonly features = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_CONSOLE_F_MULTIPORT;
  readonly queueSizes: readonly number[];
  readonly config = new Uint8Array(CONFIG_BYTES);
  readonly ports: readonly ConsolePort[];

  private readonly message = new Uint8Array(CONTROL_BYTES);
  private host: DeviceHost | undefined;
  private context: DeviceContext | undefined;

  /** @param names of the ports, port 0 first. Throws RangeError if there are too many or one is too long. */
  constructor(names: readonly string[]) {
    if (names.length < 1 || names.length > MAX_PORTS) {
      throw new RangeError(`${names.length} console ports, must be 1 to ${MAX_PORTS}`);
    }
    this.ports = names.map((name, id) => new ConsolePort(id, name, () => this.sendOwed()));
    for (const port of this.ports) {
      if (port.encodedName.length > MAX_PORT_NAME_BYTES) {
        throw new RangeError(`console port name "${port.name}" is longer than ${MAX_PORT_NAME_BYTES} bytes`);
      }
    }
    this.queueSizes = Array.from({ length: 2 * (names.length + 1) }, (_, index) =>
      index % 2 === 0 ? RECEIVE_SIZE : TRANSMIT_SIZE,
    );
    new DataView(this.config.buffer).setUint32(CONFIG_MAX_NR_PORTS, names.length, true);
  }

  /** The port called `name`. Throws if there is none. */
  port(name: string): ConsolePort {
    const port = this.ports.find((candidate) => candidate.name === name);
    if (port === undefined) throw new RangeError(`no console port is called "${name}"`);
    return port;
  }

  attach(host: DeviceHost): void {
    this.host = host;
  }

  activate(context: DeviceContext): void {
    this.context = context;
    const multiport = (context.features & VIRTIO_CONSOLE_F_MULTIPORT) !== 0n;
    for (const port of multiport ? this.ports : this.ports.slice(0, 1)) {
      port.activate(this.queue(receiveQueue(port.id))!, this.queue(receiveQueue(port.id) + 1)!, multiport);
    }
  }

  reset(): void {
    this.context = undefined;
    for (const port of this.ports) port.reset();
  }

  processQueue(index: number): void {
    if (index === CONTROL_RECEIVE) this.sendOwed();
    else if (index === CONTROL_TRANSMIT) this.receiveControl();
    else {
      const port = this.ports[index < CONTROL_RECEIVE ? 0 : (index >> 1) - 1];
      if (index % 2 === 0) port?.receive();
      else port?.transmit();
    }
    // A port's callback, or a control message, may have left something to say.
    if (index === CONTROL_TRANSMIT) this.sendOwed();
  }

  private queue(index: number): DeviceQueue | undefined {
    return this.context?.queues[index];
  }

  private receiveControl(): void {
    this.queue(CONTROL_TRANSMIT)?.serve((chain) => {
      if (chain.read(this.message) === CONTROL_BYTES) this.control();
      else this.host?.log(`control message of ${chain.readableLength} bytes, at least ${CONTROL_BYTES}`);
      return 0;
    });
  }

  private control(): void {
    const { id, event, value } = decodeControl(this.message);
    if (event === VIRTIO_CONSOLE_DEVICE_READY) {
      if (value === 1) for (const port of this.ports) port.owed.add = true;
      else this.host?.log("the driver could not set the device up");
      return;
    }
    const port = this.ports[id];
    if (port === undefined) {
      this.host?.log(`control message ${event} for port ${id} of ${this.ports.length}`);
      return;
    }
    if (event === VIRTIO_CONSOLE_PORT_OPEN) port.setGuestOpen(value !== 0);
    else if (event === VIRTIO_CONSOLE_PORT_READY) {
      if (value === 1) port.portReady();
      else this.host?.log(`the driver could not set up port ${id}`);
    }
  }

  /**
   * Sends owed messages as far as the guest has buffers for them. What is owed is a few flags per port, so a guest
   * that asks and never fetches costs nothing.
   */
  private sendOwed(): void {
    if (!this.ports.some(owesAny)) return;
    this.queue(CONTROL_RECEIVE)?.serve((chain) => this.sendOne(chain));
  }

  private sendOne(chain: DescriptorChain): number | typeof STOP {
    const port = this.ports.find(owesAny);
    if (port === undefined) return STOP;
    const { id, owed } = port;
    let bytes: Uint8Array;
    if (owed.add) {
      owed.add = false;
      bytes = encodeControl({ id, event: VIRTIO_CONSOLE_PORT_ADD, value: 1 });
    } else if (owed.open) {
      owed.open = false;
      bytes = encodeControl({ id, event: VIRTIO_CONSOLE_PORT_OPEN, value: port.hostOpen ? 1 : 0 });
    } else {
      owed.name = false;
      bytes = encodeControl({ id, event: VIRTIO_CONSOLE_PORT_NAME, value: 1 }, port.encodedName);
    }
    if (chain.writableLength < bytes.length) {
      throw new Error(`control buffer of ${chain.writableLength} bytes for a message of ${bytes.length}`);
    }
    return chain.write(bytes);
  }
}

/** Index of the receive queue of port `id`; the transmit queue is the next. */
function receiveQueue(id: number): number {
  return id === 0 ? 0 : 2 + 2 * id;
}

function owesAny(port: ConsolePort): boolean {
  return port.owed.add || port.owed.open || port.owed.name;
}
