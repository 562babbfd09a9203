/** Worker for the kick test: sleeps in poll(2) and tells what woke it. */

import { errnoName, lastErrno } from "../errno.ts";
import { libc } from "../libc.ts";
import { currentThread } from "../signals.ts";

declare const self: Worker;

self.postMessage(currentThread());
const ready = libc().poll(new Uint8Array(8), 0, 10_000);
self.postMessage(ready < 0 ? errnoName(lastErrno()) : "timed out");
