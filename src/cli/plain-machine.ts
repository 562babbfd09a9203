/**
 * The same command as in plain.ts for a machine that will start on KVM at once: all that takes is loaded in one go, which
 * takes less than to come upon it piece by piece.
 */

import "../hypervisor/kvm/host.ts";
import "../hypervisor/kvm/system.ts";
import "../hypervisor/kvm/vcpu.ts";
import "../vmm/backend-kvm.ts";
import "../vmm/builder.ts";
import "../vmm/devices-here.ts";
import "../vmm/vcpu-here.ts";

export { runPlain } from "./plain.ts";
