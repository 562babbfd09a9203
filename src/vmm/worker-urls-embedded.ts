/** Takes the place of `worker-urls.ts` in the single executable, which has its entry points below its own root. */

export const VMM_WORKER = new URL("./src/vmm/vmm-worker.js", import.meta.url);
export const VCPU_WORKER = new URL("./src/vmm/vcpu-worker.js", import.meta.url);
