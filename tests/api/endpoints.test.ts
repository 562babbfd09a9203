/**
 * Every endpoint of the OpenAPI document, before and after boot, with bodies made from its schema: right ones,
 * and ones with each field wrong, missing, unknown or not supported. After each refusal the configuration must
 * be what it was.
 */

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { OpenApiDocument } from "../../src/api/openapi.ts";
import type { SchemaNode } from "../../src/vmm/schema/schema.ts";
import { tinyKernel } from "../vmm/tiny-kernel.ts";
import { canOpenTap, fault, Monitor, request, send, temporaryDirectory } from "./support.ts";

const dir = temporaryDirectory();
const kernel = join(dir.path, "kernel");
const disk = join(dir.path, "disk");
/** The disk of the started machine, which locks it. */
const running = join(dir.path, "running");
writeFileSync(kernel, tinyKernel());
for (const path of [disk, running]) writeFileSync(path, Buffer.alloc(4096));

const printed = Bun.spawnSync([
  process.execPath,
  new URL("../../src/main.ts", import.meta.url).pathname,
  "openapi",
]);
const document: OpenApiDocument = JSON.parse(printed.stdout.toString());

interface Operation {
  readonly method: string;
  readonly path: string;
  readonly when: "pre" | "post" | "both";
  readonly supported: boolean;
  readonly body: SchemaNode | undefined;
  readonly bodyRequired: boolean;
}

const operations: Operation[] = Object.entries(document.paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, operation]) => ({
    method: method.toUpperCase(),
    path,
    when: operation["x-when"],
    supported: operation["x-supported"],
    body: bodySchema(operation.requestBody?.content["application/json"]?.schema),
    bodyRequired: operation.requestBody?.required ?? false,
  })),
);

function bodySchema(schema: unknown): SchemaNode | undefined {
  if (schema === undefined) return undefined;
  const name = String(Reflect.get(Object(schema), "$ref"))
    .split("/")
    .pop()!;
  const found = document.components.schemas[name];
  if (found === undefined) throw new Error(`no schema ${name}`);
  return found;
}

/** Values that mean something here, by field. */
const VALUES: Readonly<Record<string, unknown>> = {
  kernel_image_path: kernel,
  initrd_path: kernel,
  boot_args: "script=hang",
  stats_polling_interval_s: 1,
  path_on_host: disk,
  drive_id: "x1",
  iface_id: "x1",
  id: "x1",
  vcpu_count: 1,
  mem_size_mib: 64,
  level: "Warning",
  log_path: join(dir.path, "log"),
  metrics_path: join(dir.path, "metrics"),
  serial_out_path: join(dir.path, "serial"),
  guest_mac: "06:00:00:00:00:01",
  host_dev_name: "sparktap1",
  uds_path: join(dir.path, "vsock"),
  network_interfaces: ["x1"],
  action_type: "SendCtrlAltDel",
  mem_file_path: "memory",
};

/** What a request needs and its schema does not demand. */
const NEEDED: Readonly<Record<string, object>> = {
  "PUT /drives/x1": { path_on_host: disk },
  "PATCH /drives/x1": { path_on_host: running },
  "PUT /snapshot/load": { mem_file_path: "memory" },
};

/** A value that `schema` accepts; of an object the required fields, or all that are supported. */
function example(schema: SchemaNode, name: string, all: boolean): unknown {
  if (name in VALUES) return VALUES[name];
  if ("default" in schema) return schema.default;
  switch (schema.type) {
    case "string":
      return schema.enum?.[0] ?? "text";
    case "integer":
      return schema.minimum;
    case "boolean":
      return false;
    case "array":
      return [example(schema.items!, "", all)];
    case "object": {
      const wanted = Object.entries(schema.properties!).filter(
        ([key, field]) => schema.required!.includes(key) || (all && field["x-supported"] !== false),
      );
      return Object.fromEntries(wanted.map(([key, field]) => [key, example(field, key, all)]));
    }
    default:
      return { any: ["thing"] };
  }
}

/** A value of another type. */
function wrongType(schema: SchemaNode): unknown {
  return schema.type === "string"
    ? 7
    : schema.type === "integer"
      ? "7"
      : schema.type === "boolean"
        ? 1
        : true;
}

interface BadBody {
  readonly what: string;
  readonly body: unknown;
  readonly reason: RegExp;
}

function badBodies(schema: SchemaNode): BadBody[] {
  if (schema.type !== "object") return [];
  const base = Object(example(schema, "", false));
  const bad: BadBody[] = [
    { what: "no object", body: [1], reason: /invalid type: sequence, expected an object/ },
    { what: "an unknown field", body: { ...base, usb: 1 }, reason: /unknown field `usb`, expected / },
  ];
  for (const key of schema.required!) {
    const { [key]: _, ...rest } = base;
    bad.push({
      what: `${key} missing`,
      body: rest,
      reason: new RegExp(`missing field \`${key}\` at line 1 column `),
    });
    bad.push({ what: `${key} null`, body: { ...base, [key]: null }, reason: /invalid type: null/ });
  }
  for (const [key, field] of Object.entries(schema.properties!)) {
    const add = (what: string, value: unknown, reason: RegExp) =>
      bad.push({ what: `${key} ${what}`, body: { ...base, [key]: value }, reason });
    if (field.type !== undefined) add("of another type", wrongType(field), /invalid type: /);
    if (field.type === "integer") {
      add("too small", field.minimum! - 1, /invalid value: integer `.*`, expected /);
      add("too large", field.maximum! + 1, /invalid value: integer `.*`, expected /);
      add("not whole", field.minimum! + 0.5, /invalid type: floating point/);
    }
    if (field.enum !== undefined) add("not of the list", "foo", /unknown variant `foo`, expected /);
    if (field.pattern !== undefined) add("of another form", "foo", /invalid value: string "foo", expected /);
    if (field.type === "object") {
      for (const inner of badBodies(field)) {
        if (inner.what.includes("missing")) continue;
        add(`with ${inner.what}`, inner.body, inner.reason);
      }
    }
  }
  return bad;
}

/** Bodies that are right, and ask for what is not supported yet. */
function unsupportedBodies(schema: SchemaNode): BadBody[] {
  const base = Object(example(schema, "", false));
  return Object.entries(schema.properties ?? {}).flatMap(([key, field]): BadBody[] => {
    const support = field["x-supported"];
    if (Array.isArray(support)) {
      const others = field.enum!.filter((value) => !support.includes(value));
      return others.map((value) => ({
        what: `${key} ${value}`,
        body: { ...base, [key]: value },
        reason: new RegExp(`not supported: \`${key}\` \`${value}\` is not supported yet\\. Use `),
      }));
    }
    if (support === false) {
      const value = field.type === "boolean" ? !(field.default ?? false) : example(field, key, false);
      return [
        {
          what: `${key} given`,
          body: { ...base, [key]: value },
          reason: new RegExp(`not supported: \`${key}\` is not supported yet\\. `),
        },
      ];
    }
    return unsupportedBodies(field).map(({ what, body, reason }) => ({
      what: `${key}.${what}`,
      body: { ...base, [key]: body },
      reason: new RegExp(reason.source.replace("not supported: `", `not supported: \`${key}\\.`)),
    }));
  });
}

const WRONG_MOMENT = {
  pre: "The requested operation is not supported after starting the microVM.",
  post: "The requested operation is not supported before starting the microVM.",
};

const TAP = canOpenTap();

let before: Monitor;
let after: Monitor;

beforeAll(async () => {
  before = await Monitor.scripted(join(dir.path, "before")).ready();
  after = await Monitor.scripted(join(dir.path, "after")).ready();
  await after.put("/boot-source", { kernel_image_path: kernel, boot_args: "script=balloon" });
  const balloon = {
    amount_mib: 0,
    deflate_on_oom: true,
    stats_polling_interval_s: 3,
    free_page_hinting: true,
  };
  for (const monitor of [before, after]) expect((await monitor.put("/balloon", balloon)).status).toBe(204);
  const drive = { drive_id: "x1", path_on_host: running, is_root_device: false, is_read_only: true };
  expect((await after.put("/drives/x1", drive)).status).toBe(204);
  if (TAP) {
    const network = { iface_id: "x1", host_dev_name: "sparktap2" };
    expect((await after.put("/network-interfaces/x1", network)).status).toBe(204);
  }
  expect((await after.action("InstanceStart")).status).toBe(204);
  await after.printed("up\n");
});

afterAll(async () => {
  expect(await before.kill()).toBe(143);
  expect(await after.kill()).toBe(143);
  dir.remove();
});

async function state(monitor: Monitor): Promise<unknown> {
  return [
    (await monitor.get("/vm/config")).body,
    (await monitor.get("/")).body,
    (await monitor.get("/mmds")).body,
  ];
}

/** Sends it, expects a refusal, and that it changed nothing. */
async function refused(monitor: Monitor, method: string, path: string, body?: unknown): Promise<string> {
  const old = await state(monitor);
  const answer = await request(monitor.socket, method, path, body);
  expect(answer.status).toBe(400);
  expect(answer.headers.get("server")).toBe("Firecracker API");
  expect(answer.headers.get("content-type")).toBe("application/json");
  expect(await state(monitor)).toEqual(old);
  return fault(answer);
}

test("the document has Firecracker's endpoints: 41 operations on 26 paths", () => {
  expect(operations.length).toBe(41);
  expect(Object.keys(document.paths).length).toBe(26);
  expect(printed.exitCode).toBe(0);
});

describe.each(operations)("$method $path", (operation) => {
  const { method, body: schema, when, supported } = operation;
  const path = operation.path.replace(/\{\w+\}/, "x1");
  const extra = NEEDED[`${method} ${path}`];
  const least = schema === undefined ? undefined : example(schema, "", false);
  const good = extra === undefined ? least : { ...Object(least), ...extra };
  const right = () => (when === "post" || path === "/actions" ? after : before);
  const wrong = () => (when === "post" ? before : after);

  if (schema !== undefined) {
    test("bodies that are wrong", async () => {
      for (const { what, body, reason } of badBodies(schema)) {
        for (const monitor of [before, after]) {
          const message = await refused(monitor, method, path, body);
          expect({ what, message }).toEqual({ what, message: expect.stringMatching(reason) });
          expect(message).toStartWith("An error occurred when deserializing the json body of a request: ");
        }
      }
    });

    test("bodies that are no JSON, empty, or too large", async () => {
      for (const body of ["{", "foo", '{"a":1,}', "\u0000", "[".repeat(2000)]) {
        expect(await refused(right(), method, path, body)).toStartWith(
          "An error occurred when deserializing",
        );
      }
      if (operation.bodyRequired)
        expect(await refused(right(), method, path)).toBe(`Empty ${method} request.`);
      const old = await state(right());
      const large = await send(right().socket, method, path, `{"x":"${"x".repeat(60_000)}"}`);
      expect(large.status).toBe(400);
      expect(await large.text()).toStartWith(
        '{ "error": "Request payload with size 60008 is larger than the limit of 51200 allowed by server.\n',
      );
      expect(await state(right())).toEqual(old);
    });

    test("what is not supported is refused", async () => {
      if (!supported) {
        expect(await refused(right(), method, path, good)).toStartWith(
          "The requested operation is not supported: ",
        );
        return;
      }
      for (const { what, body, reason } of unsupportedBodies(schema)) {
        const message = await refused(right(), method, path, body);
        expect({ what, message }).toEqual({ what, message: expect.stringMatching(reason) });
      }
    });
  } else if (method === "GET") {
    test("a body is refused", async () => {
      // fetch does not send one.
      const child = Bun.spawn(
        ["curl", "-s", "--unix-socket", right().socket, "-X", "GET", `http://l${path}`, "-d", "{}"],
        { stdout: "pipe" },
      );
      expect(await new Response(child.stdout).json()).toEqual({
        fault_message: "GET request cannot have a body.",
      });
    });
  }

  if (!supported && schema === undefined) {
    test("is refused as not supported", async () => {
      expect(await refused(right(), method, path)).toStartWith("The requested operation is not supported: ");
    });
  }

  if (when !== "both") {
    test(`is refused ${when === "pre" ? "after" : "before"} boot`, async () => {
      expect(await refused(wrong(), method, path, good)).toBe(WRONG_MOMENT[when]);
    });
  }

  if (operation.path.includes("{")) {
    test("ids that are wrong", async () => {
      const folder = operation.path.replace(/\/\{\w+\}/, "");
      for (const bare of [folder, `${folder}/`]) {
        expect(await refused(right(), method, bare, good)).toBe("The ID cannot be empty.");
      }
      for (const id of ["a-b", "a%20b", "a.b", ".."]) {
        // A client folds ".." away.
        if (id === "..") continue;
        expect(await refused(right(), method, `${folder}/${id}`, good)).toBe(
          "API Resource IDs can only contain alphanumeric characters and underscores.",
        );
      }
      if (schema !== undefined) {
        expect(await refused(right(), method, `${folder}/other`, good)).toBe(
          "The id from the path does not match the id from the body!",
        );
      }
    });
  }

  // Needs an interface, which needs a TAP device: tested below.
  if (supported && path !== "/mmds/config") {
    test.skipIf(!TAP && path.startsWith("/network-interfaces/"))("does it", async () => {
      const bodies =
        schema?.type === "object" ? [good, { ...Object(example(schema, "", true)), ...extra }] : [good];
      for (const body of bodies) {
        const { status, body: answer } = await request(right().socket, method, path, body);
        // The metrics are opened once, and a PATCH must change something.
        const again = path === "/metrics" && body !== good;
        const empty = path === "/machine-config" && method === "PATCH" && body === good;
        if (again || empty) expect(status).toBe(400);
        else
          expect([status, method === "GET" ? 0 : answer]).toEqual(
            method === "GET" ? [200, 0] : [204, undefined],
          );
      }
    });
  }
});

describe("what Firecracker's own tests expect", () => {
  test.each([
    ["GET", "/foo", undefined, "Invalid request method and/or path: GET foo."],
    ["PUT", "/foo/bar", {}, "Invalid request method and/or path: PUT foo."],
    ["PATCH", "/boot-source", {}, "Invalid request method and/or path: PATCH boot-source."],
    ["PUT", "/snapshot/foo", {}, "Invalid request method and/or path: PUT snapshot."],
    ["DELETE", "/vsock", undefined, "Invalid request method and/or path: DELETE vsock."],
    ["POST", "/actions", {}, "Invalid HTTP Method: Unsupported HTTP method."],
    ["PATCH", "/machine-config", {}, "Empty PATCH request."],
    [
      "PUT",
      "/boot-source",
      { kernel_image_path: "foo.bar" },
      "Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)",
    ],
    [
      "PATCH",
      "/machine-config",
      { mem_size_mib: 0 },
      "Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size.",
    ],
    [
      "PUT",
      "/machine-config",
      '{"vcpu_count": 2}',
      "An error occurred when deserializing the json body of a request: missing field `mem_size_mib` at line 1 column 17.",
    ],
    [
      "PUT",
      "/mmds/config",
      { network_interfaces: [] },
      "MMDS config error: The list of network interface IDs that allow forwarding MMDS requests is empty.",
    ],
    [
      "PUT",
      "/mmds/config",
      { network_interfaces: ["foo"] },
      "MMDS config error: The list of network interface IDs provided contains at least one ID that does not correspond to any existing network interface.",
    ],
    [
      "PUT",
      "/mmds/config",
      { network_interfaces: [], ipv4_address: "169.254.255.1" },
      "MMDS config error: The MMDS IPv4 address is not link local.",
    ],
    [
      "PUT",
      "/mmds/config",
      { version: "foo", network_interfaces: ["1"] },
      "An error occurred when deserializing the json body of a request: unknown variant `foo`, expected `V1` or `V2` at /version.",
    ],
    [
      "PUT",
      "/snapshot/load",
      { snapshot_path: "s", mem_file_path: "m", mem_backend: { backend_type: "File", backend_path: "b" } },
      "An error occurred when deserializing the json body of a request: too many fields: either `mem_backend` or `mem_file_path` exclusively is required.",
    ],
  ])("%s %s %j", async (method, path, body, message) => {
    expect(await refused(before, method, path, body)).toBe(message);
  });

  test("a second root drive, and one of another id", async () => {
    const drive = (drive_id: string, is_root_device: boolean) => ({
      drive_id,
      path_on_host: disk,
      is_root_device,
    });
    expect((await before.put("/drives/root1", drive("root1", true))).status).toBe(204);
    expect((await before.put("/drives/root1", drive("root1", true))).status).toBe(204);
    expect(await refused(before, "PUT", "/drives/root2", drive("root2", true))).toBe(
      "Drive config error: A root block device already exists!",
    );
  });

  test("vsock: may be put again, its socket is bound at once, and a path that is taken is refused", async () => {
    const put = (name: string) => before.put("/vsock", { guest_cid: 5, uds_path: join(dir.path, name) });
    expect((await put("vsock1")).status).toBe(204);
    expect((await put("vsock1")).status).toBe(204);
    expect(existsSync(join(dir.path, "vsock1"))).toBe(true);
    expect((await put("vsock2")).status).toBe(204);
    expect([existsSync(join(dir.path, "vsock1")), existsSync(join(dir.path, "vsock2"))]).toEqual([
      false,
      true,
    ]);
    const taken = { guest_cid: 5, uds_path: running };
    expect(await refused(before, "PUT", "/vsock", taken)).toBe(
      "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: Address already in use (os error 98)",
    );
    const { body } = await before.get("/vm/config");
    expect(body).toMatchObject({ vsock: { guest_cid: 5, uds_path: join(dir.path, "vsock2") } });
  });

  test.skipIf(!TAP)(
    "network: MAC addresses and TAP devices are used once, and limits can be changed",
    async () => {
      const put = (id: string, fields: object) =>
        before.put(`/network-interfaces/${id}`, { iface_id: id, host_dev_name: `spark${id}`, ...fields });
      expect((await put("a", { guest_mac: "06:00:00:00:00:0A" })).status).toBe(204);
      expect(fault(await put("b", { guest_mac: "06:00:00:00:00:0a" }))).toBe(
        "Network config error: The MAC address is already in use: 06:00:00:00:00:0a",
      );
      expect((await put("a", { host_dev_name: "sparkother" })).status).toBe(204);
      expect((await put("b", { host_dev_name: "sparka", mtu: 9000 })).status).toBe(204);
      expect(fault(await put("c", { host_dev_name: "sparka" }))).toBe(
        "Network config error: Could not create the network device: Open tap device failed: Error while creating ifreq structure: Device or resource busy (os error 16). Invalid TUN/TAP Backend provided by sparka. Check our documentation on setting up the network devices.",
      );
      const limited = {
        iface_id: "x1",
        rx_rate_limiter: { bandwidth: { size: 1000, refill_time: 100 } },
        tx_rate_limiter: { ops: { size: 5, refill_time: 100, one_time_burst: 7 } },
      };
      expect((await after.patch("/network-interfaces/x1", limited)).status).toBe(204);
      const lifted = { iface_id: "x1", rx_rate_limiter: { bandwidth: { size: 0, refill_time: 0 } } };
      expect((await after.patch("/network-interfaces/x1", lifted)).status).toBe(204);
      const drive = { drive_id: "x1", rate_limiter: { bandwidth: { size: 9, refill_time: 8 } } };
      expect((await after.patch("/drives/x1", drive)).status).toBe(204);
      expect((await after.get("/vm/config")).body).toMatchObject({
        "network-interfaces": [
          {
            iface_id: "x1",
            rx_rate_limiter: null,
            tx_rate_limiter: { bandwidth: null, ops: { size: 5, refill_time: 100, one_time_burst: 7 } },
          },
        ],
        drives: [
          { rate_limiter: { bandwidth: { size: 9, refill_time: 8, one_time_burst: null }, ops: null } },
        ],
      });
    },
  );

  test.each([
    ["PUT", "/machine-config", { vcpu_count: 1, mem_size_mib: 64, cpu_template: "None" }, true],
    ["PATCH", "/machine-config", { cpu_template: "None" }, true],
    ["PUT", "/machine-config", { vcpu_count: 1, mem_size_mib: 64 }, false],
    ["PUT", "/vsock", { guest_cid: 3, uds_path: join(dir.path, "v"), vsock_id: "1" }, true],
    ["PUT", "/vsock", { guest_cid: 3, uds_path: join(dir.path, "v") }, false],
    ["PUT", "/mmds/config", { network_interfaces: [] }, true],
    ["PUT", "/mmds/config", { network_interfaces: [], version: "V2" }, false],
    ["PUT", "/snapshot/load", { snapshot_path: "s", mem_file_path: "m" }, true],
  ])("Deprecation header: %s %s %j", async (method, path, body, deprecated) => {
    const { headers } = await request(before.socket, method, path, body);
    expect(headers.get("deprecation")).toBe(deprecated ? "true" : null);
  });
});

describe("metadata", () => {
  test.skipIf(!TAP)("the way of guests to it is configured, and configured anew", async () => {
    const fresh = await Monitor.scripted(join(dir.path, "mmdsconfig")).ready();
    try {
      const put = (body: object) => fresh.put("/mmds/config", { network_interfaces: ["m1"], ...body });
      const config = async () => Reflect.get(Object((await fresh.get("/vm/config")).body), "mmds-config");
      expect((await put({})).status).toBe(400);
      await fresh.put("/network-interfaces/m1", { iface_id: "m1", host_dev_name: "sparkm1" });
      expect((await put({})).status).toBe(204);
      const defaults = {
        version: "V1",
        network_interfaces: ["m1"],
        ipv4_address: "169.254.169.254",
        imds_compat: false,
      };
      expect(await config()).toEqual(defaults);
      expect((await put({ network_interfaces: ["m1", "m2"] })).status).toBe(400);
      expect((await put({ ipv4_address: "10.0.0.1" })).status).toBe(400);
      expect(await config()).toEqual(defaults);
      const other = { version: "V2", ipv4_address: "169.254.1.1", imds_compat: true };
      expect((await put(other)).status).toBe(204);
      expect(await config()).toEqual({ ...defaults, ...other });
      await fresh.put("/boot-source", { kernel_image_path: kernel, boot_args: "script=hang" });
      expect((await fresh.action("InstanceStart")).status).toBe(204);
      expect((await put({})).status).toBe(400);
      expect((await fresh.put("/mmds", { a: 1 })).status).toBe(204);
      expect((await fresh.patch("/mmds", { b: 2 })).status).toBe(204);
      expect((await fresh.get("/mmds")).body).toEqual({ a: 1, b: 2 });
    } finally {
      await fresh.kill();
    }
  });

  test("is put, patched and got; what does not fit is 413", async () => {
    const fresh = await Monitor.scripted(join(dir.path, "mmds"), { mmdsSizeLimit: "100" }).ready();
    try {
      expect((await fresh.get("/mmds")).body).toEqual({});
      const early = await fresh.patch("/mmds", { a: 1 });
      expect([early.status, fault(early)]).toEqual([
        400,
        "MMDS error: The MMDS data store is not initialized.",
      ]);
      expect((await fresh.put("/mmds", { latest: { id: 1, token: null }, list: [1, null] })).status).toBe(
        204,
      );
      expect((await fresh.patch("/mmds", { latest: { id: null, name: "n" } })).status).toBe(204);
      const value = { latest: { token: null, name: "n" }, list: [1, null] };
      expect((await fresh.get("/mmds")).body).toEqual(value);
      for (const change of [
        fresh.put("/mmds", "x".repeat(99)),
        fresh.patch("/mmds", { x: "x".repeat(90) }),
      ]) {
        const answer = await change;
        if (answer.status === 400) continue;
        expect([answer.status, fault(answer)]).toEqual([
          413,
          "MMDS limit exceeded error: The MMDS patch request doesn't fit.",
        ]);
      }
      expect((await fresh.get("/mmds")).body).toEqual(value);
    } finally {
      await fresh.kill();
    }
  });
});
