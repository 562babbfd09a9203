/** A request of virtio-block (virtio 1.2, 5.2.6). */

export const VIRTIO_BLK_T_IN = 0;
export const VIRTIO_BLK_T_OUT = 1;
export const VIRTIO_BLK_T_FLUSH = 4;
export const VIRTIO_BLK_T_GET_ID = 8;

export const VIRTIO_BLK_S_OK = 0;
export const VIRTIO_BLK_S_IOERR = 1;
export const VIRTIO_BLK_S_UNSUPP = 2;

/** Header: le32 type, le32 reserved, le64 sector. */
export const HEADER_BYTES = 16;
export const HEADER_SECTOR = 8;
export const STATUS_BYTES = 1;
export const SECTOR_BYTES = 512;
