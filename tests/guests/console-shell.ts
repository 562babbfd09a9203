/** The shell that the default initramfs runs on the serial console when it has no command. */

import type { Result, Started } from "./sparkler.ts";

export class ConsoleShell {
  private count = 0;

  constructor(readonly machine: Started) {}

  /** Waits for the shell to read its first line. */
  async ready(): Promise<void> {
    await this.machine.expect("/ # ");
  }

  /** Types `command` and returns what it prints. */
  async type(command: string): Promise<string> {
    const mark = `M${this.count++}`;
    // The arithmetic keeps the echo of what is typed from looking like the marks.
    await this.machine.write(`echo ${mark}$((1)); ${command}; echo ${mark}$((2))\n`);
    await this.machine.expect(`${mark}1\r\n`);
    const printed = await this.machine.expect(`${mark}2\r\n`);
    return printed.slice(0, -mark.length - 3).replaceAll("\r\n", "\n");
  }

  /** Restarts the guest, which ends the monitor. */
  async reboot(): Promise<Result> {
    await this.machine.write("reboot -f\n");
    return this.machine.result();
  }
}
