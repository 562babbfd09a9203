/*
 * The least that a monitor can do: a VM on KVM with RAM, interrupt controllers, timer and one vCPU, whose guest executes
 * one port write. Ends with status 0 when that has been seen.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define RAM (128 << 20)
#define CODE 0x1000
#define RUN_BYTES 4096

static void fail(const char *what) {
  perror(what);
  exit(1);
}

int main(void) {
  int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (kvm < 0) fail("/dev/kvm");
  int vm = ioctl(kvm, KVM_CREATE_VM, 0);
  if (vm < 0) fail("KVM_CREATE_VM");
  if (ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000) < 0) fail("KVM_SET_TSS_ADDR");
  uint8_t *ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (ram == MAP_FAILED) fail("mmap");
  struct kvm_userspace_memory_region region = {.memory_size = RAM, .userspace_addr = (uintptr_t)ram};
  if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0) fail("KVM_SET_USER_MEMORY_REGION");
  if (ioctl(vm, KVM_CREATE_IRQCHIP, 0) < 0) fail("KVM_CREATE_IRQCHIP");
  struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
  if (ioctl(vm, KVM_CREATE_PIT2, &pit) < 0) fail("KVM_CREATE_PIT2");
  int cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  if (cpu < 0) fail("KVM_CREATE_VCPU");

  struct kvm_sregs sregs;
  if (ioctl(cpu, KVM_GET_SREGS, &sregs) < 0) fail("KVM_GET_SREGS");
  sregs.cs.base = 0;
  sregs.cs.selector = 0;
  if (ioctl(cpu, KVM_SET_SREGS, &sregs) < 0) fail("KVM_SET_SREGS");
  struct kvm_regs regs = {.rflags = 2, .rip = CODE};
  if (ioctl(cpu, KVM_SET_REGS, &regs) < 0) fail("KVM_SET_REGS");
  /* out 0x80, al */
  ram[CODE] = 0xe6;
  ram[CODE + 1] = 0x80;
  struct kvm_run *run = mmap(NULL, RUN_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
  if (run == MAP_FAILED) fail("mmap of kvm_run");
  if (ioctl(cpu, KVM_RUN, 0) < 0) fail("KVM_RUN");
  return run->exit_reason == KVM_EXIT_IO ? 0 : 1;
}
