import { expect, test } from "bun:test";
import { EPOLLIN, Epoll } from "../platform/epoll.ts";
import { EventFd } from "../platform/eventfd.ts";
import {
  CONTROL_MESSAGE,
  DOORBELL_SHARED_BYTES,
  Doorbell,
  MAX_SLOTS,
  SLOT_CONTROL,
  SLOT_MAILBOX,
} from "./doorbell.ts";
import { MAILBOX_SHARED_BYTES, Mailbox } from "./mailbox.ts";

/** A wake-up that only counts. */
class CountingWake extends EventFd {
  signals = 0;
  constructor() {
    super(-1);
  }
  override signal(): void {
    this.signals++;
  }
}

function create() {
  const shared = new SharedArrayBuffer(DOORBELL_SHARED_BYTES + MAILBOX_SHARED_BYTES);
  const wake = new CountingWake();
  return { shared, wake, doorbell: new Doorbell(shared, 0, wake) };
}

test("bits wait in their slot and are taken once", () => {
  const { doorbell } = create();
  expect(doorbell.takeSlots()).toBe(0);
  doorbell.ring(3, 0);
  doorbell.ring(3, 31);
  doorbell.ring(MAX_SLOTS - 1, 5);
  expect(doorbell.rung).toBe(true);
  expect(doorbell.takeSlots() >>> 0).toBe(0x8000_0008);
  expect(doorbell.takeBits(3) >>> 0).toBe(0x8000_0001);
  expect(doorbell.takeBits(3)).toBe(0);
  expect(doorbell.takeBits(31)).toBe(1 << 5);
  expect(doorbell.rung).toBe(false);
});

test("messages to the main thread are counted, and ring", () => {
  const { doorbell } = create();
  expect(doorbell.messages).toBe(0);
  doorbell.ringForMessage();
  doorbell.ringForMessage();
  expect(doorbell.messages).toBe(2);
  // The count is none of the slots.
  doorbell.ring(MAX_SLOTS - 1, 31);
  expect(doorbell.takeSlots() >>> 0).toBe(0x8000_0001);
  expect(doorbell.takeBits(SLOT_CONTROL)).toBe(1 << CONTROL_MESSAGE);
  doorbell.takeBits(MAX_SLOTS - 1);
  expect(doorbell.messages).toBe(2);
});

test("a sleeper is woken once, someone awake is not", () => {
  const { doorbell, wake } = create();
  doorbell.ring(0, 0);
  expect(wake.signals).toBe(0);
  doorbell.sleep((mayBlock) => expect(mayBlock).toBe(false));
  doorbell.takeSlots();
  doorbell.sleep((mayBlock) => {
    expect(mayBlock).toBe(true);
    doorbell.ring(0, 0);
    doorbell.ring(1, 1);
  });
  expect(wake.signals).toBe(1);
  doorbell.ring(0, 0);
  expect(wake.signals).toBe(1);
});

test("a mailbox call is served with its arguments and releases the caller even if serving fails", () => {
  const { shared, doorbell } = create();
  const mailbox = new Mailbox(shared, DOORBELL_SHARED_BYTES, 2, doorbell);
  mailbox.serve(() => {
    throw new Error("nothing is waiting");
  });
  const words = new Int32Array(shared, DOORBELL_SHARED_BYTES, 5);
  words.set([1, 4, 9, -1, 7]);
  const seen: number[] = [];
  expect(() =>
    mailbox.serve((...call) => {
      seen.push(...call);
      throw new Error("device failed");
    }),
  ).toThrow("device failed");
  expect(seen).toEqual([4, 9, 0xffff_ffff, 7]);
  expect(words[0]).toBe(0);
});

test("calls from another thread reach a sleeping server and return", async () => {
  const shared = new SharedArrayBuffer(DOORBELL_SHARED_BYTES + MAILBOX_SHARED_BYTES);
  const wake = EventFd.create();
  const code = `
    import { EventFd } from ${JSON.stringify(new URL("../platform/eventfd.ts", import.meta.url).pathname)};
    import { Doorbell } from ${JSON.stringify(new URL("./doorbell.ts", import.meta.url).pathname)};
    import { Mailbox } from ${JSON.stringify(new URL("./mailbox.ts", import.meta.url).pathname)};
    self.onmessage = ({ data: { shared, fd, at } }) => {
      const mailbox = new Mailbox(shared, at, 0, new Doorbell(shared, 0, new EventFd(fd)));
      for (let i = 0; i < 2000; i++) mailbox.call(1, 2, i, 0xffffffff);
      self.postMessage("done");
    };`;
  const worker = new Worker(URL.createObjectURL(new Blob([code], { type: "application/typescript" })));
  const done = new Promise((resolve) => {
    worker.onmessage = resolve;
  });
  worker.postMessage({ shared, fd: wake.fd, at: DOORBELL_SHARED_BYTES });
  const doorbell = new Doorbell(shared, 0, wake);
  const mailbox = new Mailbox(shared, DOORBELL_SHARED_BYTES, 0, doorbell);
  const epoll = new Epoll();
  epoll.watch(wake.fd, EPOLLIN, () => wake.clear());
  let served = 0;
  const end = Date.now() + 4000;
  while (served < 2000 && Date.now() < end) {
    if (doorbell.takeSlots() & (1 << SLOT_MAILBOX) && doorbell.takeBits(SLOT_MAILBOX) & 1) {
      mailbox.serve((device, command, arg0, arg1) => {
        expect([device, command, arg0, arg1]).toEqual([1, 2, served, 0xffff_ffff]);
        served++;
      });
    }
    // Bounded, so that a lost wake-up fails the test instead of hanging it.
    doorbell.sleep((mayBlock) => epoll.wait(mayBlock ? 1000 : 0));
  }
  expect(served).toBe(2000);
  await done;
  worker.terminate();
  epoll.close();
  wake.close();
});
