/**
 * Free page hinting (virtio 1.2, 5.5.6.7): on a command of the host the driver names free pages, which it keeps to
 * itself until the host says that it is done.
 */

import type { DescriptorChain } from "../chain.ts";

/** Command ids with a meaning (5.5.6.7); a run has one from 2 on. */
export const VIRTIO_BALLOON_CMD_ID_STOP = 0;
export const VIRTIO_BALLOON_CMD_ID_DONE = 1;
const FIRST_CMD_ID = 2;
const CMD_ID_BYTES = 4;

export class Hinting {
  /** Last command of the host, as it stands in the configuration space. */
  hostCmd = VIRTIO_BALLOON_CMD_ID_STOP;
  /** Last command id that the driver sent, if any. */
  guestCmd: number | undefined;
  private lastRun = VIRTIO_BALLOON_CMD_ID_DONE;
  private acknowledge = true;

  /** Begins a run. `acknowledge`: it is over as soon as the driver has named all it has. */
  start(acknowledge: boolean): void {
    this.acknowledge = acknowledge;
    this.lastRun = this.lastRun === 2 ** 32 - 1 ? FIRST_CMD_ID : this.lastRun + 1;
    this.hostCmd = this.lastRun;
  }

  /** Ends a run: the driver may use its pages again. */
  stop(): void {
    this.hostCmd = VIRTIO_BALLOON_CMD_ID_DONE;
  }

  reset(): void {
    this.hostCmd = VIRTIO_BALLOON_CMD_ID_STOP;
    this.guestCmd = undefined;
  }

  /**
   * Reads the command id that a chain without pages carries. Returns true if the driver has come to the end of a run
   * that is to be acknowledged.
   */
  readCommand(chain: DescriptorChain): boolean {
    if (chain.readableLength !== CMD_ID_BYTES) return false;
    const bytes = new Uint8Array(CMD_ID_BYTES);
    chain.read(bytes);
    const cmd = new DataView(bytes.buffer).getUint32(0, true);
    this.guestCmd = cmd;
    return cmd === VIRTIO_BALLOON_CMD_ID_STOP && this.acknowledge && this.hostCmd >= FIRST_CMD_ID;
  }

  /** True if pages named now belong to the run that the host asked for, and it has not ended it. */
  get running(): boolean {
    return this.hostCmd >= FIRST_CMD_ID && this.guestCmd === this.hostCmd;
  }
}
