/** Stream sockets of the unix domain (unix(7)). All are non-blocking and close-on-exec. */

import { dlopen } from "bun:ffi";
import { check, lastErrno, SystemError } from "./errno.ts";
import { ERRNO } from "./errno-numbers.ts";
import { closeFile } from "./files.ts";
import { cString, libc } from "./libc.ts";

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_RCVBUF = 8;
const SO_SNDBUF = 7;
/** pollfd.revents, in the upper half of the second word. */
const POLLHUP = 0x10;
/** struct sockaddr_un: u16 family, path. */
const ADDRESS_BYTES = 110;
const PATH_OFFSET = 2;
const BACKLOG = 128;

/** Longest path that a socket's address holds, in bytes. */
export const MAX_SOCKET_PATH = ADDRESS_BYTES - PATH_OFFSET - 1;

const SYMBOLS = {
  socket: { args: ["i32", "i32", "i32"], returns: "i32" },
  socketpair: { args: ["i32", "i32", "i32", "ptr"], returns: "i32" },
  bind: { args: ["i32", "ptr", "u32"], returns: "i32" },
  listen: { args: ["i32", "i32"], returns: "i32" },
  accept4: { args: ["i32", "u64", "u64", "i32"], returns: "i32" },
  connect: { args: ["i32", "ptr", "u32"], returns: "i32" },
  shutdown: { args: ["i32", "i32"], returns: "i32" },
  setsockopt: { args: ["i32", "i32", "i32", "ptr", "u32"], returns: "i32" },
} as const;

function load() {
  // What reads errno: opening it between a failed call and that would overwrite it.
  libc();
  return dlopen("libc.so.6", SYMBOLS).symbols;
}

let symbols: ReturnType<typeof load> | undefined;

function sockets(): ReturnType<typeof load> {
  symbols ??= load();
  return symbols;
}

/** Throws {@link SystemError} ENAMETOOLONG if `path` does not fit, RangeError if it has a NUL inside. */
function address(path: string): Uint8Array {
  // Without its closing NUL, which need not be there.
  const name = cString(path).subarray(0, -1);
  if (name.length > MAX_SOCKET_PATH) throw new SystemError("bind", ERRNO.ENAMETOOLONG);
  const bytes = new Uint8Array(ADDRESS_BYTES);
  bytes[0] = AF_UNIX;
  bytes.set(name, PATH_OFFSET);
  return bytes;
}

function create(): number {
  return check(sockets().socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "socket");
}

/** Binds a listening socket to `path`, which must not exist. Throws {@link SystemError}. */
export function listenUnix(path: string): number {
  const at = address(path);
  const fd = create();
  try {
    check(sockets().bind(fd, at, at.length), "bind");
    check(sockets().listen(fd, BACKLOG), "listen");
    return fd;
  } catch (error) {
    closeFile(fd);
    throw error;
  }
}

/** Takes the next connection; undefined if none waits. Throws {@link SystemError}, e.g. EMFILE. */
export function acceptUnix(fd: number): number | undefined {
  for (;;) {
    const accepted = sockets().accept4(fd, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (accepted >= 0) return accepted;
    const errno = lastErrno();
    if (errno === ERRNO.EAGAIN) return undefined;
    // The other end gave up while it waited in the queue.
    if (errno !== ERRNO.EINTR && errno !== ERRNO.ECONNABORTED) {
      throw new SystemError("accept", errno);
    }
  }
}

/** Connects to the socket at `path`. "busy" if its queue of connections is full. Throws {@link SystemError}. */
export function connectUnix(path: string): number | "busy" {
  const at = address(path);
  const fd = create();
  for (;;) {
    if (sockets().connect(fd, at, at.length) === 0) return fd;
    const errno = lastErrno();
    if (errno === ERRNO.EINTR) continue;
    closeFile(fd);
    if (errno === ERRNO.EAGAIN) return "busy";
    throw new SystemError("connect", errno);
  }
}

/** Two connected sockets. Throws {@link SystemError}. */
export function socketPair(): [number, number] {
  const pair = new Int32Array(2);
  const flags = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
  check(sockets().socketpair(AF_UNIX, flags, 0, pair), "socketpair");
  return [pair[0]!, pair[1]!];
}

/** Ends one direction. Nothing happens if the other end is gone. */
export function shutdownSocket(fd: number, direction: "read" | "write"): void {
  sockets().shutdown(fd, direction === "read" ? 0 : 1);
}

/** True if both directions are ended: the other end is closed, or each side has ended what it sends. */
export function hasHungUp(fd: number): boolean {
  const pollfd = new Int32Array([fd, 0]);
  return libc().poll(pollfd, 1, 0) > 0 && ((pollfd[1]! >>> 16) & POLLHUP) !== 0;
}

/** Asks for buffers of `bytes` in both directions; the kernel may give less. */
export function setSocketBuffers(fd: number, bytes: number): void {
  const value = new Int32Array([bytes]);
  for (const option of [SO_RCVBUF, SO_SNDBUF]) sockets().setsockopt(fd, SOL_SOCKET, option, value, 4);
}
