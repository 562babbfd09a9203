import { expect, test } from "bun:test";
import { cpuFlags, hasVirtualization } from "../../platform/cpu-flags.ts";
import { capabilityProblem, NO_HARDWARE, openProblem, versionProblem } from "./host.ts";
import { missingCapabilities } from "./system.ts";

test("each way in which KVM cannot be used is a sentence of its own that says what to do", () => {
  const sentences = [
    openProblem("ENOENT", ""),
    openProblem("EACCES", ""),
    openProblem("EBUSY", "Device or resource busy (os error 16)"),
    versionProblem(11, 12),
    capabilityProblem(["KVM_CAP_IRQFD", "KVM_CAP_PIT2"]),
    NO_HARDWARE,
  ];
  expect(sentences[0]).toMatch(/^There is no \/dev\/kvm: load the kvm_intel or kvm_amd module/);
  expect(sentences[1]).toMatch(/^No permission to open \/dev\/kvm: add the user to the group/);
  expect(sentences[2]).toBe("/dev/kvm cannot be opened: Device or resource busy (os error 16).");
  expect(sentences[3]).toMatch(/version 11 .* and 12 is needed: update/);
  expect(sentences[4]).toMatch(/lacks KVM_CAP_IRQFD, KVM_CAP_PIT2: update/);
  expect(new Set(sentences).size).toBe(sentences.length);
});

test("what is as it should be is no problem", () => {
  expect(versionProblem(12, 12)).toBeUndefined();
  expect(capabilityProblem([])).toBeUndefined();
});

test("missing capabilities are named", () => {
  expect(missingCapabilities(() => 1)).toEqual([]);
  expect(missingCapabilities((capability) => (capability === 36 || capability === 136 ? 0 : 1))).toEqual([
    "KVM_CAP_IOEVENTFD",
    "KVM_CAP_IMMEDIATE_EXIT",
  ]);
});

test("the host's processor has flags, and virtualization is either vendor's", () => {
  expect(cpuFlags().has("lm")).toBe(true);
  expect(hasVirtualization(new Set(["fpu", "vmx"]))).toBe(true);
  expect(hasVirtualization(new Set(["svm"]))).toBe(true);
  expect(hasVirtualization(new Set(["svm_lock", "vmx_extra"]))).toBe(false);
});
