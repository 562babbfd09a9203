/** Where the Workers' code is: beside this file. */

export const VMM_WORKER = new URL("./vmm-worker.ts", import.meta.url);
export const VCPU_WORKER = new URL("./vcpu-worker.ts", import.meta.url);
