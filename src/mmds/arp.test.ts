import { expect, test } from "bun:test";
import { parseArpRequest, writeArpReply } from "./arp.ts";
import { arpFrame, GUEST_IP, GUEST_MAC, MMDS_IP, MMDS_MAC } from "./testing/guest.ts";

const packet = () => arpFrame().slice(14);

test("reads a request and writes its reply", () => {
  const request = parseArpRequest(packet());
  expect(request).toEqual({ senderMac: GUEST_MAC, sender: GUEST_IP, target: MMDS_IP });
  const reply = new Uint8Array(28);
  writeArpReply(reply, request!, MMDS_MAC);
  expect(Buffer.from(reply).toString("hex")).toBe(
    ["0001", "0800", "06", "04", "0002", "060123456701", "a9fea9fe", "0600ac1e0002", "ac1e0002"].join(""),
  );
});

test("refuses what is cut off, and anything but a request for IPv4 over Ethernet", () => {
  for (let length = 0; length < 28; length++) {
    expect(parseArpRequest(packet().subarray(0, length))).toBeUndefined();
  }
  expect(parseArpRequest(Buffer.concat([packet(), new Uint8Array(18)]))).toBeDefined();
  for (let at = 0; at < 8; at++) {
    const bytes = packet();
    bytes[at]! ^= 2;
    expect(parseArpRequest(bytes)).toBeUndefined();
  }
});
