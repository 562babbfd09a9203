import { describe, expect, test } from "bun:test";
import { checkLimits, choose, chooseAccelerator, describeChoice } from "./accel.ts";
import { ConfigError } from "./config-error.ts";

const unusable = { text: "There is no /dev/kvm: do this.", usable: false };
const noHardware = { text: "The host's KVM has no VMX.", usable: true };

describe("choice", () => {
  test("auto takes KVM if it can run the guest, else the software CPU and says why", () => {
    expect(choose("auto", undefined, undefined).backend).toBe("kvm");
    expect(choose("auto", unusable, undefined)).toEqual({ backend: "soft", reason: unusable.text });
    expect(choose("auto", noHardware, undefined)).toEqual({ backend: "soft", reason: noHardware.text });
  });

  test("KVM asked for is taken also without hardware under it, and refused where it cannot be", () => {
    expect(choose("kvm", undefined, undefined)).toEqual({ backend: "kvm", reason: "It was asked for." });
    const forced = choose("kvm", noHardware, undefined);
    expect(forced).toMatchObject({ backend: "kvm", reason: "It was asked for." });
    expect(forced.warning).toMatch(/^The host's KVM has no VMX\. It emulates them, .* Give --accel soft/);
    expect(() => choose("kvm", unusable, undefined)).toThrow(
      "There is no /dev/kvm: do this. Leave --accel out, or give --accel soft, to run on the software CPU.",
    );
    expect(() => choose("kvm", noHardware, "The host's KVM lacks KVM_CAP_PIT2: do that.")).toThrow(
      ConfigError,
    );
  });

  test("the software CPU is there always", async () => {
    const choice = await chooseAccelerator("soft");
    expect(describeChoice(choice)).toBe("The guest runs on the software CPU: It was asked for.");
    expect((await chooseAccelerator("auto")).reason).toMatch(/\.$/);
  });
});

test.each([
  ["soft", 1, 3072, undefined],
  ["soft", 2, 128, /^2 vCPUs asked for: the software CPU runs 1 so far.*`sparkler doctor`/],
  ["soft", 1, 3073, /^3073 MiB of memory asked for: the software CPU takes up to 3072 MiB so far\./],
  ["kvm", 32, 2 ** 30, undefined],
  ["kvm", 33, 128, /^33 vCPUs asked for: KVM runs 32 so far\. Set the number of vCPUs to 32\.$/],
] as const)("limits of %s: %d vCPUs, %d MiB", (backend, vcpus, memMib, message) => {
  if (message === undefined) checkLimits(backend, vcpus, memMib);
  else expect(() => checkLimits(backend, vcpus, memMib)).toThrow(message);
});
