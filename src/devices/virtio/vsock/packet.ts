/** Packet header of virtio-vsock (virtio 1.2, 5.10.6): 44 bytes, little-endian. */

/** Well-known address of the host (5.10.4). */
export const VSOCK_HOST_CID = 2;

export const VIRTIO_VSOCK_TYPE_STREAM = 1;

export const VIRTIO_VSOCK_OP_REQUEST = 1;
export const VIRTIO_VSOCK_OP_RESPONSE = 2;
export const VIRTIO_VSOCK_OP_RST = 3;
export const VIRTIO_VSOCK_OP_SHUTDOWN = 4;
export const VIRTIO_VSOCK_OP_RW = 5;
export const VIRTIO_VSOCK_OP_CREDIT_UPDATE = 6;
export const VIRTIO_VSOCK_OP_CREDIT_REQUEST = 7;

/** Flags of SHUTDOWN: the sender will receive, or send, no more. */
export const VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE = 1;
export const VIRTIO_VSOCK_SHUTDOWN_F_SEND = 2;
export const SHUTDOWN_BOTH = VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE | VIRTIO_VSOCK_SHUTDOWN_F_SEND;

export const HEADER_BYTES = 44;
const SRC_CID = 0;
const DST_CID = 8;
const SRC_PORT = 16;
const DST_PORT = 20;
const LEN = 24;
const TYPE = 28;
const OP = 30;
const FLAGS = 32;
const BUF_ALLOC = 36;
const FWD_CNT = 40;

export interface VsockHeader {
  srcCid: bigint;
  dstCid: bigint;
  srcPort: number;
  dstPort: number;
  /** Bytes of data after the header. */
  len: number;
  type: number;
  op: number;
  flags: number;
  /** Size of the sender's receive buffer. */
  bufAlloc: number;
  /** Bytes that the sender has taken out of that buffer since the start, modulo 2^32. */
  fwdCnt: number;
}

/** Reads a header of {@link HEADER_BYTES} bytes. Nothing in it is checked. */
export function decodeHeader(bytes: Uint8Array): VsockHeader {
  const view = new DataView(bytes.buffer, bytes.byteOffset, HEADER_BYTES);
  return {
    srcCid: view.getBigUint64(SRC_CID, true),
    dstCid: view.getBigUint64(DST_CID, true),
    srcPort: view.getUint32(SRC_PORT, true),
    dstPort: view.getUint32(DST_PORT, true),
    len: view.getUint32(LEN, true),
    type: view.getUint16(TYPE, true),
    op: view.getUint16(OP, true),
    flags: view.getUint32(FLAGS, true),
    bufAlloc: view.getUint32(BUF_ALLOC, true),
    fwdCnt: view.getUint32(FWD_CNT, true),
  };
}

export function encodeHeader(header: VsockHeader, bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, HEADER_BYTES);
  view.setBigUint64(SRC_CID, header.srcCid, true);
  view.setBigUint64(DST_CID, header.dstCid, true);
  view.setUint32(SRC_PORT, header.srcPort, true);
  view.setUint32(DST_PORT, header.dstPort, true);
  view.setUint32(LEN, header.len, true);
  view.setUint16(TYPE, header.type, true);
  view.setUint16(OP, header.op, true);
  view.setUint32(FLAGS, header.flags, true);
  view.setUint32(BUF_ALLOC, header.bufAlloc, true);
  view.setUint32(FWD_CNT, header.fwdCnt, true);
}
