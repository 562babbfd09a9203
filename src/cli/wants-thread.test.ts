import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const dir = mkdtempSync(join(tmpdir(), "sparkler-wants-thread-"));
afterAll(() => rmSync(dir, { recursive: true }));

const ANSWER = `
  import { wantsVcpuThread } from ${JSON.stringify(join(import.meta.dir, "wants-thread.ts"))};
  console.log(wantsVcpuThread(JSON.parse(process.argv[1])));
`;

/** In a process of its own, because it looks at its stdin. */
async function wants(flags: object, stdin: "ignore" | "pipe" = "ignore"): Promise<string> {
  const { stdout } = Bun.spawn([process.execPath, "-e", ANSWER, JSON.stringify(flags)], { stdin });
  return (await new Response(stdout).text()).trim();
}

function configFile(text: string): string {
  const path = join(dir, `${crypto.randomUUID()}.json`);
  writeFileSync(path, text);
  return path;
}

const PLAIN = { "machine-config": { vcpu_count: 1, mem_size_mib: 128 }, drives: [], vsock: null };
const flags = (config: object) => ({
  configFile: configFile(JSON.stringify(config)),
  api: false,
  accel: "auto",
});

describe("the first look", () => {
  test("a machine with one vCPU and no device does without", async () => {
    expect(await wants(flags(PLAIN))).toBe("false");
    expect(await wants({ ...flags(PLAIN), accel: "kvm" })).toBe("false");
    expect(await wants(flags({}))).toBe("false");
  });

  test("without a configuration file there is nothing to start yet", async () => {
    expect(await wants({ api: true, accel: "auto" })).toBe("false");
  });

  test("somebody who may write to the serial port wants one", async () => {
    expect(await wants(flags(PLAIN), "pipe")).toBe("true");
  });

  test.each([
    ["an API", { api: true }, {}],
    ["the software CPU", { accel: "soft" }, {}],
    ["two vCPUs", {}, { "machine-config": { vcpu_count: 2, mem_size_mib: 128 } }],
    ["a broken machine-config", {}, { "machine-config": 3 }],
    ["a drive", {}, { drives: [{ drive_id: "d" }] }],
    ["a network interface", {}, { "network-interfaces": [{}] }],
    ["vsock", {}, { vsock: { guest_cid: 3 } }],
    ["a balloon", {}, { balloon: {} }],
    ["an entropy device", {}, { entropy: {} }],
  ])("%s wants one", async (_, moreFlags, moreConfig) => {
    expect(await wants({ ...flags({ ...PLAIN, ...moreConfig }), ...moreFlags })).toBe("true");
  });

  test.each(["", "[", "null"])("a configuration file with %j is for others to refuse", async (text) => {
    expect(await wants({ configFile: configFile(text), api: false, accel: "auto" })).toBe("true");
  });

  test("so is one that is not there, or that can be read only once", async () => {
    expect(await wants({ configFile: join(dir, "missing"), api: false, accel: "auto" })).toBe("true");
    expect(await wants({ configFile: "/dev/null", api: false, accel: "auto" })).toBe("true");
  });
});
