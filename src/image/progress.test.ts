import { describe, expect, test } from "bun:test";
import { terminalProgress } from "./progress.ts";

function terminal() {
  const written: string[] = [];
  return { written, stream: { isTTY: true, write: (text: string) => written.push(text) } };
}

describe("terminalProgress", () => {
  test("is silent in a pipe", () => {
    const { written, stream } = terminal();
    const step = terminalProgress({ ...stream, isTTY: false }).start("Downloading", 100);
    step.update(50);
    step.finish();
    expect(written).toEqual([]);
  });

  test("redraws one line with bytes, percent and elapsed time, and ends it once", () => {
    const { written, stream } = terminal();
    let now = 0;
    const step = terminalProgress(stream, () => now).start("Downloading x", 4 * 2 ** 20);
    now = 10;
    step.update(1);
    now = 1500;
    step.update(2 ** 20);
    now = 2000;
    step.finish();
    step.finish();
    expect(written).toEqual([
      "\r\x1b[KDownloading x  0%  0.0 s",
      "\r\x1b[KDownloading x  1.0 MiB  25%  1.5 s",
      "\r\x1b[KDownloading x  4.0 MiB  100%  2.0 s",
      "\n",
    ]);
  });
});
