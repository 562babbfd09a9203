import { expect, test } from "bun:test";
import { ioUringProblem } from "../platform/host-probe.ts";
import { cgroupProblem, formatFindings, programProblem, tapProblem, userfaultfdProblem } from "./doctor.ts";

const NET_ADMIN = 1n << 12n;

test("each gap is told with its cure", () => {
  expect(tapProblem("ENOENT", NET_ADMIN)).toMatch(/modprobe tun/);
  expect(tapProblem("EACCES", NET_ADMIN)).toMatch(/cannot be opened \(EACCES\)/);
  expect(tapProblem(undefined, ~NET_ADMIN & 0xffn)).toMatch(/ip tuntap add/);
  expect(tapProblem(undefined, NET_ADMIN)).toBeUndefined();

  expect(userfaultfdProblem("ENOENT", "ENOSYS")).toMatch(/CONFIG_USERFAULTFD/);
  expect(userfaultfdProblem("EACCES", "EPERM")).toMatch(/unprivileged_userfaultfd=1/);
  expect(userfaultfdProblem(undefined, "EPERM")).toBeUndefined();
  expect(userfaultfdProblem("ENOENT", undefined)).toBeUndefined();

  expect(ioUringProblem("ENOSYS")).toMatch(/5\.10\.51 or newer/);
  expect(ioUringProblem("EPERM")).toMatch(/io_uring_disabled=0/);
  expect(ioUringProblem(undefined)).toBeUndefined();

  expect(cgroupProblem(false, undefined)).toMatch(/unified_cgroup_hierarchy/);
  expect(cgroupProblem(true, "EROFS")).toMatch(/cannot be written \(EROFS\)/);
  expect(cgroupProblem(true, undefined)).toBeUndefined();

  expect(programProblem(null, "passt")).toBe("It is not installed: apt-get install passt.");
  expect(programProblem("/usr/bin/passt", "passt")).toBeUndefined();
});

test("a line for what is there, and one more for what is not", () => {
  const findings = [
    { name: "tap", use: "network", problem: undefined },
    { name: "io_uring", use: "drives", problem: "It is not: do this." },
  ];
  expect(formatFindings(findings)).toBe(
    "yes  tap       network\nno   io_uring  drives\n               It is not: do this.\n",
  );
});

test("the command looks at this host", () => {
  const main = new URL("../main.ts", import.meta.url).pathname;
  const { stdout, stderr, exitCode } = Bun.spawnSync([process.execPath, main, "doctor"]);
  expect(stderr.toString()).toBe("");
  expect(exitCode).toBe(0);
  const names = [...stdout.toString().matchAll(/^(?:yes|no ) {2}(\S+)/gm)].map(([, name]) => name);
  expect(names).toEqual([
    ...["KVM", "tap", "userfaultfd", "io_uring", "cgroups"],
    ...["passt", "mke2fs", "mmdebstrap", "apt-get"],
  ]);
});
