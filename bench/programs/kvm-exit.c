/*
 * The least that a monitor can do: a 64-bit guest on KVM that writes to a port COUNT times, each a KVM_RUN.
 * kvm-exit COUNT prints the nanoseconds of one.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#define RAM (2 << 20)
#define CODE 0x10000
#define PML4 0x1000
#define PDPT 0x2000
#define PD 0x3000

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

int main(int argc, char **argv) {
  uint32_t count = argc > 1 ? (uint32_t)atoi(argv[1]) : 100000;
  int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (kvm < 0) fail("/dev/kvm");
  int vm = ioctl(kvm, KVM_CREATE_VM, 0);
  if (vm < 0) fail("KVM_CREATE_VM");
  if (ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000) < 0) fail("KVM_SET_TSS_ADDR");
  if (ioctl(vm, KVM_CREATE_IRQCHIP, 0) < 0) fail("KVM_CREATE_IRQCHIP");
  uint8_t *ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (ram == MAP_FAILED) fail("mmap");
  struct kvm_userspace_memory_region region = {.memory_size = RAM, .userspace_addr = (uintptr_t)ram};
  if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0) fail("KVM_SET_USER_MEMORY_REGION");
  int cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  if (cpu < 0) fail("KVM_CREATE_VCPU");

  struct {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entries[128];
  } cpuid = {.head.nent = 128};
  if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) < 0) fail("KVM_GET_SUPPORTED_CPUID");
  if (ioctl(cpu, KVM_SET_CPUID2, &cpuid) < 0) fail("KVM_SET_CPUID2");

  ((uint64_t *)(ram + PML4))[0] = PDPT | 3;
  ((uint64_t *)(ram + PDPT))[0] = PD | 3;
  ((uint64_t *)(ram + PD))[0] = 0x83;
  /* mov ecx, count; again: out dx, al; add rcx, -1; jne again; stop: in al, dx; jmp stop */
  uint8_t code[] = {0xb9, 0, 0, 0, 0, 0xee, 0x48, 0x83, 0xc1, 0xff, 0x75, 0xf9, 0xec, 0xeb, 0xfd};
  memcpy(code + 1, &count, 4);
  memcpy(ram + CODE, code, sizeof code);

  struct kvm_sregs sregs;
  if (ioctl(cpu, KVM_GET_SREGS, &sregs) < 0) fail("KVM_GET_SREGS");
  struct kvm_segment flat = {.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
  sregs.cs = flat;
  flat.selector = 16, flat.type = 3, flat.l = 0, flat.db = 1;
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat;
  sregs.cr3 = PML4;
  sregs.cr4 = 0x20;
  sregs.cr0 = 0x80000011;
  sregs.efer = 0x500;
  if (ioctl(cpu, KVM_SET_SREGS, &sregs) < 0) fail("KVM_SET_SREGS");
  struct kvm_regs regs = {.rip = CODE, .rflags = 2, .rdx = 0x80, .rsp = 0x8000};
  if (ioctl(cpu, KVM_SET_REGS, &regs) < 0) fail("KVM_SET_REGS");
  int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
  if (run == MAP_FAILED) fail("mmap kvm_run");

  uint64_t start = 0, sum = 0;
  for (uint32_t exits = 0;;) {
    if (ioctl(cpu, KVM_RUN, 0) < 0) fail("KVM_RUN");
    if (run->exit_reason != KVM_EXIT_IO) {
      fprintf(stderr, "exit reason %u\n", run->exit_reason);
      return 1;
    }
    if (run->io.direction == KVM_EXIT_IO_IN) break;
    sum += ((uint8_t *)run)[run->io.data_offset];
    if (exits++ == 0) start = now();
  }
  printf("%.1f\n", (double)(now() - start) / count + (sum & 0));
  return 0;
}
