/** Worker of one vCPU: builds the CPU and its buses, then runs the guest until it ends. */

import { EventFd } from "../platform/eventfd.ts";
import { loadBackend } from "./backend.ts";
import { Doorbell } from "./doorbell.ts";
import { GuestCpu } from "./guest-cpu.ts";
import { compileAsUsual, compileLater } from "./jit-policy.ts";
import { describeFailure, type VcpuCommand, type VcpuEvent } from "./messages.ts";

declare const self: Worker;

compileLater();

/** Known once there is a machine. */
let doorbell: Doorbell | undefined;

function post(event: VcpuEvent): void {
  self.postMessage(event);
  doorbell?.ringForMessage();
}

let cpu: GuestCpu | undefined;

/** The commands before: while one loads code, the next may come. */
let earlier: Promise<void> = Promise.resolve();

self.onmessage = ({ data }: MessageEvent<VcpuCommand>) => {
  earlier = earlier.then(() => obey(data));
};

async function obey(data: VcpuCommand): Promise<void> {
  try {
    if (data.kind === "load") {
      await (await loadBackend(data.backend)).load?.();
      return;
    }
    if (data.kind === "start") {
      const { shared, doorbell: offset, wakeFd } = data.plan;
      doorbell = new Doorbell(shared, offset, new EventFd(wakeFd));
      cpu = await GuestCpu.create(data.plan, data.index, () => post({ kind: "paused" }));
      post({ kind: "ready" });
      return;
    }
    if (cpu === undefined) throw new Error("a vCPU was told to run before it was built");
    if (data.registers !== undefined) cpu.setBootRegisters(data.registers);
    compileAsUsual();
    const end = cpu.run();
    post({ kind: "end", end, stats: cpu.stats() });
  } catch (error) {
    post({ kind: "failed", message: describeFailure(error) });
  }
}
