import { expect, test } from "bun:test";
import { currentThread, installKickHandler, kickThread } from "./signals.ts";

test("a kick interrupts a sleeping system call of another thread", async () => {
  installKickHandler();
  installKickHandler();
  const worker = new Worker(new URL("./testing/sleeper.ts", import.meta.url));
  const next = () =>
    new Promise<unknown>((resolve) => {
      worker.onmessage = ({ data }) => resolve(data);
    });
  const tid = Number(await next());
  expect(tid).not.toBe(currentThread());
  const slept = next();
  // The first ones may come before it sleeps.
  const timer = setInterval(() => kickThread(tid), 5);
  expect(await slept).toBe("EINTR");
  clearInterval(timer);
  worker.terminate();
});

test("a thread that is not there is no error", () => {
  installKickHandler();
  kickThread(2 ** 22 - 1);
});
