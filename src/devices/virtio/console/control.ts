/** Control messages of a multiport console (virtio 1.2, 5.3.6.2): le32 id, le16 event, le16 value. */

export const CONTROL_BYTES = 8;

/** Events. */
export const VIRTIO_CONSOLE_DEVICE_READY = 0;
export const VIRTIO_CONSOLE_PORT_ADD = 1;
export const VIRTIO_CONSOLE_PORT_READY = 3;
export const VIRTIO_CONSOLE_PORT_OPEN = 6;
export const VIRTIO_CONSOLE_PORT_NAME = 7;

export interface ControlMessage {
  readonly id: number;
  readonly event: number;
  readonly value: number;
}

/** `name` follows the header, without a terminator, in a PORT_NAME message. */
export function encodeControl(message: ControlMessage, name: Uint8Array = new Uint8Array(0)): Uint8Array {
  const bytes = new Uint8Array(CONTROL_BYTES + name.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, message.id, true);
  view.setUint16(4, message.event, true);
  view.setUint16(6, message.value, true);
  bytes.set(name, CONTROL_BYTES);
  return bytes;
}

/** Decodes the first CONTROL_BYTES of `bytes`. */
export function decodeControl(bytes: Uint8Array): ControlMessage {
  const view = new DataView(bytes.buffer, bytes.byteOffset, CONTROL_BYTES);
  return { id: view.getUint32(0, true), event: view.getUint16(4, true), value: view.getUint16(6, true) };
}
