/** A whole microVM, with all its threads, whose kernel is a test guest, entered by the 64-bit Linux protocol or by PVH. */

import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeElf, pvhNote, type TestSegment } from "../../src/boot/test-images.ts";
import { buildMicrovm } from "../../src/vmm/builder.ts";
import type { Microvm } from "../../src/vmm/microvm.ts";
import type { BalloonSpec, DriveSpec } from "../../src/vmm/spec.ts";
import { GuestCode } from "./guest-code.ts";
import { CODE } from "./machine.ts";

export interface WholeMachineOptions {
  readonly backend: string;
  readonly vcpus?: number;
  readonly smt?: boolean;
  readonly memMib?: number;
  readonly entropy?: boolean;
  readonly balloon?: BalloonSpec;
  readonly drives?: readonly DriveSpec[];
  readonly bootArgs?: string;
  /** The code is 32-bit code, entered by the PVH protocol. */
  readonly pvh?: boolean;
}

/** Builds the machine and starts its guest. What it prints on the serial port is in `consoleTail` at its end. */
export async function startGuest(
  options: WholeMachineOptions,
  code: (guest: GuestCode) => void,
): Promise<Microvm> {
  const guest = new GuestCode();
  code(guest);
  const dir = mkdtempSync(join(tmpdir(), "sparkler-guest-"));
  const path = join(dir, "kernel");
  const segments: TestSegment[] = [{ gpa: CODE, data: guest.assemble(CODE), align: 1 }];
  if (options.pvh === true) segments.push(pvhNote(CODE));
  writeFileSync(path, makeElf(CODE, segments));
  const fd = openSync(path, "r");
  try {
    return await buildMicrovm(
      {
        vcpus: options.vcpus ?? 1,
        smt: options.smt,
        memMib: options.memMib ?? 16,
        kernel: { fd, path },
        initrd: [],
        bootArgs: options.bootArgs,
        drives: options.drives ?? [],
        entropy: options.entropy ?? false,
        balloon: options.balloon,
        serial: { keepTail: true },
        bootTimer: false,
        log: { id: "test", fd: 2, level: "Error", showLevel: false, showOrigin: false },
      },
      { backend: options.backend },
    );
  } finally {
    closeSync(fd);
    rmSync(dir, { recursive: true });
  }
}
