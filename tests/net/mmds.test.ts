/** The metadata service as a Debian guest sees it, on a TAP device and with a network that needs no privileges. */

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { request } from "../api/support.ts";
import { finishRuns, hostHas, sparkler, TEST_LIMIT, temporaryDirectory } from "../guests/sparkler.ts";
import { type GuestOptions, startGuest } from "./guest.ts";
import { Namespace, noNamespaces } from "./namespace.ts";

const reason = noNamespaces();
if (reason !== undefined) console.log(`skip: metadata in a guest on a TAP device: ${reason}`);

const dir = temporaryDirectory();
const big = "0123456789abcdef".repeat(2500);
const metadata = {
  latest: { "meta-data": { "ami-id": "ami-87654321", "reservation-id": "r-79054aef" }, "user-data": big },
};

let space: Namespace;

beforeAll(() => {
  writeFileSync(join(dir.path, "metadata"), JSON.stringify(metadata));
  if (reason !== undefined) return;
  space = new Namespace();
  space.addTap("tap0", "172.30.0.1/24");
});

afterAll(() => {
  space?.remove();
  dir.remove();
  finishRuns();
});

/**
 * A request by hand, since busybox's wget knows no PUT and shows no body of an error: its status line and its body,
 * which have one line each.
 */
const ASK = `ask() { # METHOD PATH HEADER...
  request="$1 $2 HTTP/1.1\\r\\n"; shift 2
  for header; do request="$request$header\\r\\n"; done
  printf "$request\\r\\n" | nc $mmds 80 | sed -n '1p;$p' | tr -d '\\r'
}
mmds=169.254.169.254
`;

function boot(script: string, mmds: object, more: Partial<GuestOptions> = {}) {
  const net = { iface_id: "net1", host_dev_name: "tap0", guest_mac: "06:00:ac:1e:00:02" };
  return startGuest({
    dir: dir.path,
    config: { "network-interfaces": [net], "mmds-config": { network_interfaces: ["net1"], ...mmds } },
    script: ASK + script,
    bootArgs: "sparkler.ip=172.30.0.2/24",
    prefix: space.prefix,
    ...more,
    flags: ["--metadata", join(dir.path, "metadata"), ...(more.flags ?? [])],
  });
}

describe.skipIf(reason !== undefined)("a guest on a TAP device", () => {
  test(
    "V1: lines, JSON and an answer of many segments, found by ARP; counted",
    async () => {
      const metrics = join(dir.path, "metrics");
      const guest = await boot(
        `ip route add $mmds dev eth0
         get() { wget -q -O - "$@"; echo; }
         get http://$mmds/latest/meta-data/
         get --header 'Accept: application/json' http://$mmds/latest/meta-data
         get http://$mmds/latest/user-data | sha256sum
         get --header "X-Long: $(head -c 2000 /dev/zero | tr '\\0' x)" http://$mmds/latest/meta-data/ami-id
         get http://$mmds/none 2>&1
         cat /proc/net/arp; ping -c 1 -W 5 172.30.0.1; echo over`,
        { version: "V1" },
        { flags: ["--metrics-path", metrics] },
      );
      await guest.expect("ami-id\r\nreservation-id\r\n");
      await guest.expect('{"ami-id":"ami-87654321","reservation-id":"r-79054aef"}\r\n');
      await guest.expect(new Bun.CryptoHasher("sha256").update(`${big}\n`).digest("hex"));
      // A request longer than the MTU, which the guest leaves to the device to cut and to checksum.
      await guest.expect("ami-87654321\r\n");
      await guest.expect("404");
      await guest.expect("06:01:23:45:67:01");
      // Other traffic goes its way.
      await guest.expect("1 packets received");
      await guest.expect("over");
      expect((await guest.result()).stderr).toBe("");
      const last = JSON.parse(readFileSync(metrics, "utf8").trimEnd().split("\n").pop()!);
      expect(last.mmds).toMatchObject({
        rx_accepted_err: 0,
        rx_no_token: 5,
        rx_invalid_token: 0,
        connections_created: 5,
        connections_destroyed: 5,
      });
      expect(last.mmds.tx_bytes).toBeGreaterThan(big.length);
      expect(last.mmds.rx_accepted).toBeGreaterThan(last.mmds.rx_count);
    },
    TEST_LIMIT,
  );

  test(
    "V2 at another address, through the gateway's MAC: nothing without a token, everything with one",
    async () => {
      const guest = await boot(
        `mmds=169.254.170.2
         ask GET /latest/meta-data
         ask PUT /latest/api/token
         ask PUT /latest/api/token 'X-metadata-token-ttl-seconds: 0'
         token=$(ask PUT /latest/api/token 'X-aws-ec2-metadata-token-ttl-seconds: 21600' | tail -1)
         ask GET /latest/meta-data/ami-id "X-metadata-token: $token"
         ask GET /latest/meta-data/ami-id "X-metadata-token: x$token"
         wget -q -O - --header "X-aws-ec2-metadata-token: $token" http://$mmds/latest/user-data | wc -c
         echo over`,
        { version: "V2", ipv4_address: "169.254.170.2" },
        { bootArgs: "sparkler.ip=172.30.0.2/24,172.30.0.1" },
      );
      await guest.expect("HTTP/1.1 401 \r\nNo MMDS token provided.");
      await guest.expect("HTTP/1.1 400 \r\nToken time to live value not found.");
      await guest.expect("HTTP/1.1 400 \r\nInvalid time to live value provided for token: 0.");
      await guest.expect("HTTP/1.1 200 \r\nami-87654321\r\n");
      await guest.expect("HTTP/1.1 401 \r\nMMDS token not valid.");
      await guest.expect(`${big.length}\r\n`);
      await guest.expect("over");
      expect((await guest.result()).stderr).toBe("");
    },
    TEST_LIMIT,
  );

  test(
    "what the API changes is what the guest sees next",
    async () => {
      const socket = join(dir.path, "api");
      const guest = await boot(
        `value() { wget -q -O - http://$mmds/value 2>/dev/null; }
         ip route add $mmds dev eth0
         wget -q -O - http://$mmds/latest/meta-data/ami-id; echo
         echo ready; until [ "$(value)" = first ]; do sleep 0.1; done
         echo first; until [ "$(value)" = second ]; do sleep 0.1; done; echo second`,
        { version: "V1" },
        { api: socket },
      );
      await guest.expect("ami-87654321\r\nready\r\n");
      expect(existsSync(socket)).toBe(true);
      expect((await request(socket, "PUT", "/mmds", { value: "first" })).status).toBe(204);
      await guest.expect("first\r\n");
      expect((await request(socket, "PATCH", "/mmds", { value: "second" })).status).toBe(204);
      await guest.expect("second\r\n");
      expect((await request(socket, "GET", "/vm/config")).body).toMatchObject({
        "mmds-config": {
          version: "V1",
          network_interfaces: ["net1"],
          ipv4_address: "169.254.169.254",
          imds_compat: false,
        },
      });
      expect((await guest.result()).stderr).toBe("");
    },
    TEST_LIMIT,
  );
});

const noPasst = hostHas("passt") ? undefined : "passt is not installed";
if (noPasst !== undefined) console.log(`skip: metadata without privileges: ${noPasst}`);

test.skipIf(noPasst !== undefined)(
  "sparkler run --net user --metadata: 401 without a token, the metadata with one",
  async () => {
    const script = `${ASK}
      ask GET /latest/meta-data/ami-id
      token=$(ask PUT /latest/api/token 'X-metadata-token-ttl-seconds: 21600' | tail -1)
      ask GET /latest/meta-data/ami-id "X-metadata-token: $token"
      ask GET /latest/meta-data "X-metadata-token: $token" 'Accept: application/json'`;
    const argv = ["run", "--net", "user", "--metadata", join(dir.path, "metadata"), "--", "sh", "-c", script];
    const { code, stdout, stderr } = await sparkler(argv);
    expect({ code, stderr, lines: stdout.toString().split("\n") }).toEqual({
      code: 0,
      stderr: "",
      lines: [
        ...["HTTP/1.1 401 ", expect.stringMatching(/^No MMDS token provided\. Use /)],
        ...["HTTP/1.1 200 ", "ami-87654321"],
        ...["HTTP/1.1 200 ", '{"ami-id":"ami-87654321","reservation-id":"r-79054aef"}', ""],
      ],
    });
  },
  TEST_LIMIT,
);

test("sparkler run --metadata that cannot be", async () => {
  const run = async (...flags: string[]) => {
    const { code, stderr } = await sparkler(["run", ...flags, "--", "true"]);
    return [code, stderr.trim()];
  };
  const path = join(dir.path, "metadata");
  expect(await run("--metadata", path)).toEqual([
    153,
    "Error: --metadata needs --net: the guest gets it through its network.",
  ]);
  expect(await run("--net", "user", "--metadata", `${path}.none`)).toEqual([
    152,
    `Error: Unable to open or read from the mmds content file: ${path}.none: No such file or directory (os error 2)`,
  ]);
  writeFileSync(`${path}.large`, JSON.stringify("x".repeat(51_199)));
  expect(await run("--net", "user", "--metadata", `${path}.large`)).toEqual([
    152,
    `Error: MMDS error: ${path}.large: The MMDS patch request doesn't fit.`,
  ]);
});
