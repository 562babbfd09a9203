/** Runs a program to which io_uring_setup(2) is refused with EPERM: without-io-uring.ts PROGRAM [ARGUMENT...] */

import { dlopen, ptr } from "bun:ffi";

const PR_SET_SECCOMP = 22;
const PR_SET_NO_NEW_PRIVS = 38;
const SECCOMP_MODE_FILTER = 2;
const SECCOMP_RET_ERRNO = 0x0005_0000;
const SECCOMP_RET_ALLOW = 0x7fff_0000;
const BPF_LD_W_ABS = 0x20;
const BPF_JMP_JEQ_K = 0x15;
const BPF_RET_K = 0x06;
const SYS_IO_URING_SETUP = 425;
const EPERM = 1;

/** struct sock_filter: code, jt, jf, k. struct seccomp_data begins with the number of the system call. */
const rows: readonly [code: number, jt: number, jf: number, k: number][] = [
  [BPF_LD_W_ABS, 0, 0, 0],
  [BPF_JMP_JEQ_K, 0, 1, SYS_IO_URING_SETUP],
  [BPF_RET_K, 0, 0, SECCOMP_RET_ERRNO | EPERM],
  [BPF_RET_K, 0, 0, SECCOMP_RET_ALLOW],
];
const filter = new Uint8Array(8 * rows.length);
const view = new DataView(filter.buffer);
for (const [i, [code, jt, jf, k]] of rows.entries()) {
  view.setUint16(8 * i, code, true);
  view.setUint8(8 * i + 2, jt);
  view.setUint8(8 * i + 3, jf);
  view.setUint32(8 * i + 4, k, true);
}
/** struct sock_fprog. */
const program = new BigUint64Array([BigInt(rows.length), BigInt(ptr(filter))]);

const { symbols } = dlopen("libc.so.6", {
  prctl: { args: ["i32", "u64", "u64", "u64", "u64"], returns: "i32" },
});
if (
  symbols.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) !== 0 ||
  symbols.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ptr(program), 0, 0) !== 0
) {
  throw new Error("no seccomp filter can be set");
}
// A child has the filter of the thread that starts it.
const child = Bun.spawnSync(process.argv.slice(2), { stdio: ["inherit", "inherit", "inherit"] });
process.exit(child.exitCode ?? 1);
