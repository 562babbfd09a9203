/** The devices of a microVM in AML: the body of the DSDT. */

import {
  I8042_COMMAND_PORT,
  I8042_DATA_PORT,
  I8042_GSI,
  SERIAL_GSI,
  SERIAL_PORT_SIZE,
  SERIAL_PORT_START,
} from "../layout.ts";
import type { VirtioMmioRange } from "../virtio-range.ts";
import {
  type Aml,
  device,
  eisaId,
  integer,
  interruptEdgeHigh,
  ioPorts,
  memory32Fixed,
  method,
  name,
  resourceTemplate,
  returns,
  scope,
  string,
} from "./aml.ts";

/** 16550A-compatible serial port. */
const HID_SERIAL = "PNP0501";
/** PS/2 keyboard controller. */
const HID_KEYBOARD = "PNP0303";
/** The id Linux's virtio_mmio driver binds to (drivers/virtio/virtio_mmio.c, virtio_mmio_acpi_match). */
const HID_VIRTIO_MMIO = "LNRO0005";
/** `_STA`: present, enabled, shown, functioning (ACPI 6.5, 6.3.7). */
const STA_OK = 0x0f;

/** Everything below `\_SB`: serial port, keyboard controller, and the virtio devices `V000`, `V001`, ... */
export function dsdtBody(virtioDevices: readonly VirtioMmioRange[]): Aml {
  return scope("\\_SB", [serialPort(), keyboardController(), ...virtioDevices.map(virtioDevice)]);
}

function serialPort(): Aml {
  return device("COM1", [
    name("_HID", eisaId(HID_SERIAL)),
    name("_UID", integer(0)),
    name("_DDN", string("COM1")),
    name(
      "_CRS",
      resourceTemplate([interruptEdgeHigh(SERIAL_GSI), ioPorts(SERIAL_PORT_START, SERIAL_PORT_SIZE)]),
    ),
  ]);
}

function keyboardController(): Aml {
  return device("PS2", [
    name("_HID", eisaId(HID_KEYBOARD)),
    method("_STA", 0, [returns(integer(STA_OK))]),
    name(
      "_CRS",
      resourceTemplate([
        ioPorts(I8042_DATA_PORT, 1),
        ioPorts(I8042_COMMAND_PORT, 1),
        interruptEdgeHigh(I8042_GSI),
      ]),
    ),
  ]);
}

function virtioDevice(range: VirtioMmioRange, index: number): Aml {
  return device(`V${String(index).padStart(3, "0")}`, [
    name("_HID", string(HID_VIRTIO_MMIO)),
    name("_UID", integer(index)),
    name("_CCA", integer(1)),
    name("_CRS", resourceTemplate([memory32Fixed(range.gpa, range.size), interruptEdgeHigh(range.gsi)])),
  ]);
}
