/** Worker of the vmm thread: builds all devices and serves them until the machine stops. */

import type { VmmCommand } from "./commands.ts";
import { compileAsUsual, compileLater } from "./jit-policy.ts";
import { describeFailure, type VmmEvent, type VmmStart } from "./messages.ts";
import { createVmmThread } from "./vmm-thread.ts";

declare const self: Worker;

compileLater();

const post = (event: VmmEvent) => self.postMessage(event);

/** This thread sleeps in epoll_wait and never returns to its event loop, so it takes messages itself. */
function nextCommand(port: MessagePort): VmmCommand | undefined {
  // Loaded here because it takes 2 ms, which a machine without an API need not spend.
  return process.getBuiltinModule("node:worker_threads").receiveMessageOnPort(port)?.message;
}

self.onmessage = async ({ data: { plan, commands } }: MessageEvent<VmmStart>) => {
  try {
    const thread = await createVmmThread(plan, post, () => nextCommand(commands));
    post({ kind: "ready" });
    compileAsUsual();
    thread.run();
    post({ kind: "stopped", consoleTail: thread.consoleTail, metrics: thread.metrics });
  } catch (error) {
    post({ kind: "failed", message: describeFailure(error) });
  }
};
