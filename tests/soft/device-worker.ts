/** The thread of {@link DeviceThread}. */
import { SoftIrqLine, softWriteHook } from "../../src/hypervisor/soft/index.ts";
import { GuestMemory } from "../../src/memory/guest-memory.ts";
import type { DeviceCommand, DeviceStart } from "./device.ts";

declare const self: Worker;

let memory: WebAssembly.Memory | undefined;
let ram: GuestMemory | undefined;

const pause = (ms: number): void => {
  if (ms > 0) Bun.sleepSync(ms);
};

function start({ memory: shared, base }: DeviceStart): void {
  memory = shared;
  const buffer = shared.buffer as unknown as SharedArrayBuffer;
  ram = new GuestMemory({ buffer, base, size: buffer.byteLength - base });
  ram.setWriteHook(softWriteHook(shared));
  self.postMessage("ready");
}

self.onmessage = ({ data }: MessageEvent<DeviceStart | DeviceCommand>) => {
  if ("memory" in data) {
    start(data);
    return;
  }
  if (data.kind === "write") {
    pause(data.delayMs);
    ram!.write(data.gpa, Uint8Array.from(data.bytes));
    return;
  }
  const line = new SoftIrqLine(memory!, data.gsi);
  if (data.kind === "irq") {
    pause(data.delayMs);
    line.trigger();
    return;
  }
  for (let i = 1; i <= data.times; i++) {
    line.trigger();
    while (ram!.readU32(data.gpa) < i) pause(0.02);
  }
};
