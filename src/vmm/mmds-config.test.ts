import { expect, test } from "bun:test";
import { mmdsJson, mmdsSettings } from "./mmds-config.ts";

test("defaults are Firecracker's", () => {
  const settings = mmdsSettings({ network_interfaces: ["a"] }, ["a", "b"]);
  expect(mmdsJson(settings)).toEqual({
    version: "V1",
    network_interfaces: ["a"],
    ipv4_address: "169.254.169.254",
    imds_compat: false,
  });
});

test("link-local addresses are those that RFC 3927 leaves to hosts", () => {
  const set = (ipv4_address: string) => () =>
    mmdsSettings({ network_interfaces: ["a"], ipv4_address }, ["a"]);
  for (const address of ["169.254.1.0", "169.254.169.254", "169.254.254.255"]) {
    expect(set(address)().ipv4Address).toBe(address);
  }
  for (const address of ["169.254.0.1", "169.254.255.1", "169.253.1.1", "10.0.0.1"]) {
    expect(set(address)).toThrow("The MMDS IPv4 address is not link local.");
  }
});

test.each([
  [{ network_interfaces: ["c"], ipv4_address: "169.254.0.1" }, "The MMDS IPv4 address is not link local."],
  [
    { network_interfaces: [] },
    "The list of network interface IDs that allow forwarding MMDS requests is empty.",
  ],
  [
    { network_interfaces: ["a", "c"] },
    "The list of network interface IDs provided contains at least one ID that does not correspond to any existing network interface.",
  ],
])("%j is refused", (config, message) => {
  expect(() => mmdsSettings(config, ["a", "b"])).toThrow(message);
});
