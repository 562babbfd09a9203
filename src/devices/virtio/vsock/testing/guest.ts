/** A guest's vsock driver for tests: sends packets and collects those that come. */

import type { TestDriver } from "../../testing/driver.ts";
import { decodeHeader, encodeHeader, HEADER_BYTES, type VsockHeader } from "../packet.ts";

const RX = 0;
const TX = 1;

export interface Packet extends VsockHeader {
  readonly data: Uint8Array;
}

export class GuestVsock {
  private readonly buffers = new Map<number, { gpa: number; length: number }>();

  constructor(
    private readonly driver: TestDriver,
    private readonly cid: number,
  ) {}

  /** Gives `count` receive buffers of a header and `dataBytes`, in two descriptors as Linux does. */
  give(count: number, dataBytes = 4096): void {
    const queue = this.driver.queues[RX]!;
    for (let i = 0; i < count; i++) {
      const length = HEADER_BYTES + dataBytes;
      const gpa = this.driver.alloc(length);
      const parts = [{ gpa, length: HEADER_BYTES, write: true }];
      if (dataBytes > 0) parts.push({ gpa: gpa + HEADER_BYTES, length: dataBytes, write: true });
      this.buffers.set(queue.add(parts), { gpa, length });
    }
    queue.kick();
  }

  /** Packets that have come since the last call. */
  take(): Packet[] {
    return this.driver.queues[RX]!.takeUsed().map(({ id, length }) => {
      const buffer = this.buffers.get(id)!;
      this.buffers.delete(id);
      const header = decodeHeader(this.driver.ram(buffer.gpa, HEADER_BYTES).slice());
      const data = this.driver.ram(buffer.gpa + HEADER_BYTES, Math.max(0, length - HEADER_BYTES)).slice();
      return { ...header, data };
    });
  }

  /** Sends a packet; fields that are left out are those of an honest guest with a large buffer. */
  send(fields: Partial<VsockHeader>, data: Uint8Array = new Uint8Array(0)): void {
    const mark = this.driver.allocated;
    const bytes = new Uint8Array(HEADER_BYTES);
    encodeHeader(
      {
        srcCid: BigInt(this.cid),
        dstCid: 2n,
        srcPort: 1000,
        dstPort: 52,
        len: data.length,
        type: 1,
        op: 0,
        flags: 0,
        bufAlloc: 262_144,
        fwdCnt: 0,
        ...fields,
      },
      bytes,
    );
    const parts = [this.driver.readable(bytes)];
    if (data.length > 0) parts.push(this.driver.readable(data));
    const served = this.driver.request(TX, parts) !== undefined;
    if (served) this.driver.release(mark);
  }
}
