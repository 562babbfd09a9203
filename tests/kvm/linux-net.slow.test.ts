/** A real Linux on KVM with a TAP device, metadata and vsock: the same devices as on the software CPU, over irqfds. */

import { afterAll, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { temporaryDirectory } from "../guests/sparkler.ts";
import { compile } from "../net/guest.ts";
import { Namespace, noNamespaces } from "../net/namespace.ts";
import { BOOT_ARGS, BOOT_LIMIT_MS, initramfs, noLinux, writeKernel } from "./linux.ts";

const ENTRY = new URL("./entry.ts", import.meta.url).pathname;
/** The guest's kernel may run in an instruction emulator, a thousand times slower than its programs. */
const FILE_BYTES = 256 * 1024;

const INIT = `#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
PATH=/bin
ip link set lo up; ip addr add 172.30.0.2/24 dev eth0; ip link set eth0 up
ip route add 169.254.169.254 dev eth0
ping -c 2 -W 20 172.30.0.1 | grep received
nc 172.30.0.1 7001 >/data
echo "down $(md5sum </data)"
nc 172.30.0.1 7002 </data
echo "metadata $(wget -q -O - http://169.254.169.254/name)"
vsock connect 60
vsock send 52 4 20000
echo over
reboot -f
`;

const dir = temporaryDirectory();
const vsock = compile("vsock", dir.path);
const reason = noLinux() ?? noNamespaces() ?? (vsock === undefined ? "there is no C compiler" : undefined);
if (reason !== undefined) console.warn(`network of Linux on KVM: ${reason}`);
afterAll(() => dir.remove());

test.skipIf(reason !== undefined)(
  "ping, TCP both ways, metadata and vsock",
  async () => {
    const path = (name: string) => join(dir.path, name);
    await writeKernel(path("vmlinux"));
    writeFileSync(path("initrd"), initramfs(INIT, { "/bin/vsock": readFileSync(vsock!) }));
    const content = crypto.getRandomValues(new Uint8Array(65536));
    writeFileSync(path("data"), Buffer.alloc(FILE_BYTES, content));
    writeFileSync(path("metadata"), JSON.stringify({ name: "from the host" }));
    writeFileSync(
      path("config"),
      JSON.stringify({
        "boot-source": {
          kernel_image_path: path("vmlinux"),
          initrd_path: path("initrd"),
          boot_args: BOOT_ARGS,
        },
        "machine-config": { vcpu_count: 1, mem_size_mib: 256 },
        drives: [],
        "network-interfaces": [{ iface_id: "net1", host_dev_name: "tap0" }],
        "mmds-config": { network_interfaces: ["net1"] },
        vsock: { guest_cid: 3, uds_path: path("vsock.sock") },
      }),
    );
    const server = createServer({ allowHalfOpen: true }, (socket) => socket.pipe(socket));
    const space = new Namespace();
    try {
      space.addTap("tap0", "172.30.0.1/24");
      await space.peer("serve", path("data"), "7001");
      const take = await space.peer("take", path("data"), "7002");
      await new Promise<void>((resolve) => server.listen(`${path("vsock.sock")}_52`, resolve));
      const flags = {
        api: false,
        id: "kvm",
        accel: "kvm",
        configFile: path("config"),
        metadata: path("metadata"),
        metricsPath: path("metrics"),
        level: "Warn",
      };
      const monitor = Bun.spawn([...space.prefix, process.execPath, ENTRY, JSON.stringify(flags)], {
        stdin: "ignore",
        stdout: "pipe",
        stderr: "inherit",
      });
      const limit = setTimeout(() => monitor.kill("SIGKILL"), BOOT_LIMIT_MS - 5000);
      const output = await new Response(monitor.stdout).text();
      clearTimeout(limit);
      const sum = new Bun.CryptoHasher("md5").update(readFileSync(path("data"))).digest("hex");
      expect(output).toContain("2 packets received");
      expect(output).toContain(`down ${sum}`);
      expect(await take.line()).toBe("same");
      expect(output).toContain("metadata from the host");
      expect(output).toContain("Connection reset by peer");
      expect(output).toContain("4 of 4 good");
      expect(await monitor.exited).toBe(0);
      const last = JSON.parse(readFileSync(path("metrics"), "utf8").trimEnd().split("\n").pop()!);
      console.log({ net: last.net, vsock: last.vsock, mmds: last.mmds });
    } finally {
      server.close();
      space.remove();
    }
  },
  BOOT_LIMIT_MS,
);
