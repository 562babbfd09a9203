import { expect, test } from "bun:test";
import { FIRECRACKER_FLAGS } from "./flags.ts";
import { plainFlags } from "./plain-flags.ts";

test("flags with their values and defaults", () => {
  expect(plainFlags(["--no-api", "--config-file", "vm.json", "--accel", "kvm", "--boot-timer"])).toEqual({
    api: false,
    configFile: "vm.json",
    accel: "kvm",
    bootTimer: true,
    id: "anonymous-instance",
    httpApiMaxPayloadSize: "51200",
  });
  expect(plainFlags(["--api-sock", "a", "--id", "x", "--api-sock", "b"])).toMatchObject({
    api: true,
    apiSock: "b",
    id: "x",
    accel: "auto",
  });
});

test.each([
  [[]],
  [["run", "--", "true"]],
  [["--version"]],
  [["--help"]],
  [["--confg-file", "x"]],
  [["--config-file"]],
  [["--config-file", "--no-api"]],
  [["--config-file=x"]],
  [["--accel", "gpu"]],
  [["--no-api", "extra"]],
])("left to the command line library: %j", (argv) => {
  expect(plainFlags(argv)).toBeUndefined();
});

test("what is refused is left to the library, which says so", () => {
  for (const { name, argument } of FIRECRACKER_FLAGS.filter(({ support }) => support === "refused")) {
    expect(plainFlags(argument === "" ? [`--${name}`] : [`--${name}`, "x"])).toBeUndefined();
  }
});
