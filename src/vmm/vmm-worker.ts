/** Worker of the vmm thread: builds all devices and serves them until the machine stops. */

import { loadBackend } from "./backend.ts";
import { describeFailure, type VmmEvent, type VmmStart } from "./messages.ts";
import { VmmThread } from "./vmm-thread.ts";

declare const self: Worker;

const post = (event: VmmEvent) => self.postMessage(event);

self.onmessage = async ({ data: { plan } }: MessageEvent<VmmStart>) => {
  try {
    const thread = new VmmThread(plan, await loadBackend(plan.backend), post);
    post({ kind: "ready" });
    thread.run();
    post({ kind: "stopped", consoleTail: thread.consoleTail });
  } catch (error) {
    post({ kind: "failed", message: describeFailure(error) });
  }
};
