/** The guest's devices as a vCPU thread sees them: register files in shared memory, at their addresses. */

import {
  BOOT_TIMER_START,
  I8042_DATA_PORT,
  I8042_GSI,
  PM1_CONTROL_SIZE,
  PM1_EVENT_PORT,
  PM1_EVENT_SIZE,
  SERIAL_GSI,
  SERIAL_PORT_SIZE,
  SERIAL_PORT_START,
} from "../boot/layout.ts";
import { BootTimer } from "../devices/legacy/boot-timer.ts";
import { I8042 } from "../devices/legacy/i8042.ts";
import { Pm1Registers } from "../devices/legacy/pm1.ts";
import { Serial } from "../devices/legacy/serial.ts";
import type { IrqLine } from "../devices/types.ts";
import type { VcpuReads } from "../devices/virtio/block/vcpu-reads.ts";
import { MmioFront } from "../devices/virtio/mmio/front.ts";
import { EventFd } from "../platform/eventfd.ts";
import { Bus } from "./bus.ts";
import { Doorbell, SLOT_SERIAL, SLOT_VIRTIO } from "./doorbell.ts";
import type { MachinePlan } from "./machine.ts";
import { Mailbox } from "./mailbox.ts";

/** Ports 0x60 to 0x64. */
const I8042_PORTS = 5;
const BOOT_TIMER_SIZE = 0x1000;

export interface VcpuBusOptions {
  readonly plan: MachinePlan;
  /** Index of this vCPU. */
  readonly index: number;
  readonly irqLine: (gsi: number) => IrqLine;
  /** By virtio device: what serves its first queue on this thread, as far as it can. */
  readonly disks?: readonly (VcpuReads | undefined)[] | undefined;
  /** The guest pulled the reset line. */
  readonly onReset: () => void;
  /** The guest's init wrote to the boot timer. */
  readonly onBoot: () => void;
}

/** Builds the port and memory buses of one vCPU. */
export function createVcpuBus(options: VcpuBusOptions): { pio: Bus; mmio: Bus } {
  const { plan, index, irqLine, disks, onReset, onBoot } = options;
  const { shared } = plan;
  const doorbell = new Doorbell(shared, plan.doorbell, new EventFd(plan.wakeFd));
  const mailbox = new Mailbox(shared, plan.mailboxes[index]!, index, doorbell);

  const pio = new Bus();
  const serial = new Serial(shared, plan.serialOffset, irqLine(SERIAL_GSI), () =>
    doorbell.ring(SLOT_SERIAL, 0),
  );
  pio.insert(SERIAL_PORT_START, SERIAL_PORT_SIZE, serial);
  pio.insert(I8042_DATA_PORT, I8042_PORTS, new I8042(shared, plan.i8042Offset, irqLine(I8042_GSI), onReset));
  pio.insert(PM1_EVENT_PORT, PM1_EVENT_SIZE + PM1_CONTROL_SIZE, new Pm1Registers(shared, plan.pm1Offset));

  const mmio = new Bus();
  if (plan.bootTimer) {
    mmio.insert(BOOT_TIMER_START, BOOT_TIMER_SIZE, new BootTimer(shared, plan.bootTimerOffset, onBoot));
  }
  for (const [i, { gpa, size, offset }] of plan.virtio.entries()) {
    const disk = disks?.[i];
    const link = {
      notify: (queue: number) => {
        if (disk === undefined || queue !== 0 || !disk.serve()) doorbell.ring(SLOT_VIRTIO + i, queue);
      },
      call: (command: number, arg0: number, arg1: number) => mailbox.call(i, command, arg0, arg1),
    };
    mmio.insert(gpa, size, new MmioFront(shared, offset, link));
  }
  return { pio, mmio };
}
