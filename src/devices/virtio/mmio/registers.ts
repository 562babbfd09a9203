/** virtio-mmio registers (virtio 1.2, 4.2.2) and the register file that vCPU threads and vmm thread share. */

export const MAGIC_VALUE = 0x000;
export const VERSION = 0x004;
export const DEVICE_ID = 0x008;
export const VENDOR_ID = 0x00c;
export const DEVICE_FEATURES = 0x010;
export const DEVICE_FEATURES_SEL = 0x014;
export const DRIVER_FEATURES = 0x020;
export const DRIVER_FEATURES_SEL = 0x024;
export const QUEUE_SEL = 0x030;
export const QUEUE_NUM_MAX = 0x034;
export const QUEUE_NUM = 0x038;
export const QUEUE_READY = 0x044;
export const QUEUE_NOTIFY = 0x050;
export const INTERRUPT_STATUS = 0x060;
export const INTERRUPT_ACK = 0x064;
export const STATUS = 0x070;
export const QUEUE_DESC_LOW = 0x080;
export const QUEUE_DESC_HIGH = 0x084;
export const QUEUE_DRIVER_LOW = 0x090;
export const QUEUE_DRIVER_HIGH = 0x094;
export const QUEUE_DEVICE_LOW = 0x0a0;
export const QUEUE_DEVICE_HIGH = 0x0a4;
export const SHM_LEN_LOW = 0x0b0;
export const SHM_LEN_HIGH = 0x0b4;
export const SHM_BASE_LOW = 0x0b8;
export const SHM_BASE_HIGH = 0x0bc;
export const CONFIG_GENERATION = 0x0fc;
export const CONFIG = 0x100;

/** "virt". */
export const MAGIC = 0x74726976;
export const MMIO_VERSION = 2;

/** Device status (virtio 1.2, 2.1). */
export const STATUS_ACKNOWLEDGE = 1;
export const STATUS_DRIVER = 2;
export const STATUS_DRIVER_OK = 4;
export const STATUS_FEATURES_OK = 8;
export const STATUS_DEVICE_NEEDS_RESET = 64;
export const STATUS_FAILED = 128;

/** InterruptStatus. */
export const INT_VRING = 1;
export const INT_CONFIG = 2;

/** Words of the shared register file. */
export const W_DEVICE_ID = 0;
export const W_DEVICE_FEATURES = 1; // and 2
export const W_DRIVER_FEATURES = 3; // and 4
export const W_DEVICE_FEATURES_SEL = 5;
export const W_DRIVER_FEATURES_SEL = 6;
export const W_QUEUE_SEL = 7;
export const W_INTERRUPT_STATUS = 8;
export const W_STATUS = 9;
export const W_CONFIG_GENERATION = 10;
export const W_QUEUE_COUNT = 11;
export const W_CONFIG_LENGTH = 12;
const HEADER_WORDS = 16;

/** Words of one queue. */
export const Q_NUM_MAX = 0;
export const Q_NUM = 1;
export const Q_READY = 2;
export const Q_DESC = 3; // low, high
export const Q_DRIVER = 5; // low, high
export const Q_DEVICE = 7; // low, high
export const QUEUE_WORDS = 16;

/** Most queues that a device can have on this transport. */
export const MAX_QUEUES = 32;
/** Most bytes of device configuration space. */
export const MAX_CONFIG_BYTES = 256;

const CONFIG_OFFSET = 4 * (HEADER_WORDS + MAX_QUEUES * QUEUE_WORDS);

/** Bytes of shared memory that one virtio-mmio register file takes. */
export const MMIO_SHARED_BYTES = CONFIG_OFFSET + MAX_CONFIG_BYTES;

/** Both sides' view of the shared register file. */
export interface RegisterFile {
  readonly words: Int32Array;
  readonly config: Uint8Array;
}

export function registerFile(shared: SharedArrayBuffer, offset: number): RegisterFile {
  return {
    words: new Int32Array(shared, offset, CONFIG_OFFSET / 4),
    config: new Uint8Array(shared, offset + CONFIG_OFFSET, MAX_CONFIG_BYTES),
  };
}

/** First word of queue `index`, which must be below MAX_QUEUES. */
export function queueWord(index: number): number {
  return HEADER_WORDS + index * QUEUE_WORDS;
}

/** Commands from the front that need the device's own thread. */
export const COMMAND_RESET = 0;
export const COMMAND_DRIVER_OK = 1;
/** arg0: offset in config space in bits 0-15, bytes (1, 2, 4) in bits 16-31; arg1: value. */
export const COMMAND_WRITE_CONFIG = 2;
