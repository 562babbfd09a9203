import { expect, test } from "bun:test";
import { EPOLLIN, Epoll } from "./epoll.ts";
import { SystemError } from "./errno.ts";
import { EventFd } from "./eventfd.ts";
import { waitWritable } from "./files.ts";
import { Interruption } from "./interruption.ts";

/** Far longer than a test may take. */
const FOR_EVER = 600_000;

test("it interrupts the thread's system calls again and again, until it is closed", () => {
  const epoll = new Epoll();
  const event = EventFd.create();
  epoll.watch(event.fd, EPOLLIN, () => event.clear());
  const timer = new Interruption(5);
  for (let i = 0; i < 3; i++) expect(epoll.wait(FOR_EVER)).toBe(false);
  timer.setPeriod(1);
  for (let i = 0; i < 3; i++) expect(epoll.wait(FOR_EVER)).toBe(false);
  timer.close();
  expect(() => timer.close()).toThrow(SystemError);
  event.signal();
  expect(epoll.wait(FOR_EVER)).toBe(true);
  event.close();
  epoll.close();
});

test("what does not sleep is not disturbed", () => {
  const event = EventFd.create();
  const timer = new Interruption(1);
  for (let i = 0; i < 10_000; i++) expect(waitWritable(event.fd, -1)).toBe(true);
  timer.close();
  event.close();
});
