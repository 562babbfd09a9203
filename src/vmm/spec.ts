/** What a microVM is to be made of: the outcome of a configuration file or of `sparkler run`'s flags. */

import type { MmdsConfig } from "../mmds/mmds.ts";
import type { LoggerOptions } from "../observe/logger.ts";
import type { RateLimiterConfig } from "../ratelimit/rate-limiter.ts";
import type { TokenBucketConfig } from "../ratelimit/token-bucket.ts";

export interface DriveSpec {
  /** Name in log lines. */
  readonly id: string;
  readonly path: string;
  readonly readOnly: boolean;
  /** True: the kernel is told to mount it as root. */
  readonly root: boolean;
  /** `root=PARTUUID=` instead of `/dev/vda`. */
  readonly partuuid?: string | undefined;
  /** `Writeback`: FLUSH reaches the storage device before it completes. `Unsafe`: FLUSH does nothing. */
  readonly cacheType: "Unsafe" | "Writeback";
  /** `Async`: many transfers at once, through io_uring. `Sync` if left out. */
  readonly ioEngine?: "Sync" | "Async" | undefined;
  readonly rateLimiter?: RateLimiterConfig | undefined;
}

/** What a network interface's frames go through: a TAP device, or a stream socket to passt. */
export interface NetLinkSpec {
  readonly kind: "tap" | "stream";
  readonly fd: number;
}

export interface NetSpec {
  /** Name in log lines. */
  readonly id: string;
  readonly link: NetLinkSpec;
  /** Six bytes. */
  readonly mac?: Uint8Array | undefined;
  readonly mtu?: number | undefined;
  readonly rxRateLimiter?: RateLimiterConfig | undefined;
  readonly txRateLimiter?: RateLimiterConfig | undefined;
}

export interface VsockSpec {
  readonly guestCid: number;
  /** Ports that host programs listen on are at `<udsPath>_<port>`. */
  readonly udsPath: string;
  /** Bound to `udsPath` and listening. */
  readonly listenFd: number;
}

export interface BalloonSpec {
  /** Memory that the balloon takes from the guest, MiB. */
  readonly amountMib: number;
  readonly deflateOnOom: boolean;
  /** Seconds between two statistics; 0: none. */
  readonly statsPollingIntervalS: number;
  readonly freePageHinting: boolean;
  readonly freePageReporting: boolean;
}

/** Where the first serial port is connected to. */
export interface SerialSpec {
  /** Descriptor that gets the output; undefined: the output is thrown away. */
  readonly outputFd?: number | undefined;
  /** Descriptor whose bytes are typed at the port. */
  readonly inputFd?: number | undefined;
  /** Bytes per time that are output; what the guest sends beyond that is lost. */
  readonly rateLimiter?: TokenBucketConfig | undefined;
  /** Keep the last output, for a message about a guest that died. */
  readonly keepTail?: boolean | undefined;
}

/** Descriptors of a program run by `sparkler run`. */
export interface ProgramSpec {
  readonly stdinFd: number;
  readonly stdoutFd: number;
  readonly stderrFd: number;
}

export interface MachineSpec {
  readonly vcpus: number;
  /** Two vCPUs are the threads of one core. False by default. */
  readonly smt?: boolean | undefined;
  /** The vCPUs measure where their time goes. False by default. */
  readonly measured?: boolean | undefined;
  readonly memMib: number;
  /** Open kernel file: vmlinux or bzImage. */
  readonly kernel: FileSource;
  /** Initrd files and archives, concatenated. */
  readonly initrd: readonly (FileSource | Uint8Array)[];
  /** Boot arguments; the root device and `pci=off` are added. Undefined: Firecracker's default line. */
  readonly bootArgs?: string | undefined;
  readonly drives: readonly DriveSpec[];
  readonly entropy: boolean;
  readonly entropyRateLimiter?: RateLimiterConfig | undefined;
  readonly networks?: readonly NetSpec[] | undefined;
  readonly vsock?: VsockSpec | undefined;
  /** Metadata that guests get through some of `networks`. */
  readonly mmds?: MmdsConfig | undefined;
  readonly balloon?: BalloonSpec | undefined;
  readonly serial: SerialSpec;
  /** Ports for a guest program's stdin, stdout, stderr and exit status. */
  readonly program?: ProgramSpec | undefined;
  readonly bootTimer: boolean;
  readonly log: LoggerOptions;
}

/** An open file and the name it was opened by, for messages. */
export interface FileSource {
  readonly fd: number;
  readonly path: string;
}
