/*
 * One end of a transfer, timed. Prints "bench: NANOSECONDS OPERATIONS BYTES"; with listen-* it prints "ready" and serves
 * one connection after the other, untimed.
 *   iobench block DEVICE read|write seq|random BLOCK COUNT DEPTH   O_DIRECT, DEPTH requests at once, within 128 MiB
 *   iobench send|recv|ping tcp HOST PORT BYTES                     ping: BYTES round trips of one byte
 *   iobench send|recv|ping vsock CID PORT BYTES
 *   iobench listen-tcp PORT | listen-unix PATH                     the first byte says what the other end wants
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/aio_abi.h>
#include <linux/vm_sockets.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "work.h"

#define AREA (128u << 20)
#define CHUNK 65536
#define MAX_DEPTH 64

static char buffer[CHUNK];

static void fail(const char *what) {
  printf("bench: failed %s: %s\n", what, strerror(errno));
  exit(1);
}

static void report(uint64_t start, uint64_t operations, uint64_t bytes) {
  printf("bench: %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", now() - start, operations, bytes);
}

static void block(char **argv) {
  int writes = strcmp(argv[3], "write") == 0;
  int random = strcmp(argv[4], "random") == 0;
  uint64_t size = strtoull(argv[5], NULL, 0), count = strtoull(argv[6], NULL, 0);
  unsigned depth = strtoul(argv[7], NULL, 0);
  int fd = open(argv[2], (writes ? O_RDWR : O_RDONLY) | O_DIRECT);
  if (fd < 0) fail(argv[2]);
  aio_context_t context = 0;
  if (depth > MAX_DEPTH || syscall(SYS_io_setup, MAX_DEPTH, &context) != 0) fail("io_setup");
  struct iocb blocks[MAX_DEPTH], *list[MAX_DEPTH];
  struct io_event events[MAX_DEPTH];
  uint64_t places = AREA / size, state = 88172645463325252u, begun = 0, ended = 0;
  unsigned ready = depth;
  memset(blocks, 0, sizeof blocks);
  for (unsigned i = 0; i < depth; i++) {
    void *data;
    if (posix_memalign(&data, 4096, size) != 0) fail("posix_memalign");
    memset(data, 0x5a + i, size);
    blocks[i].aio_fildes = fd;
    blocks[i].aio_lio_opcode = writes ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
    blocks[i].aio_buf = (uintptr_t)data;
    blocks[i].aio_nbytes = size;
    list[i] = &blocks[i];
  }
  uint64_t start = now();
  while (ended < count) {
    unsigned batch = 0;
    for (; batch < ready && begun < count; batch++, begun++) {
      list[batch]->aio_offset = (random ? next_random(&state) % places : begun % places) * size;
    }
    if (batch > 0 && syscall(SYS_io_submit, context, batch, list) != batch) fail("io_submit");
    long got = syscall(SYS_io_getevents, context, 1, MAX_DEPTH, events, NULL);
    if (got < 1) fail("io_getevents");
    for (long i = 0; i < got; i++) {
      if ((uint64_t)events[i].res != size) fail("transfer");
      list[i] = (struct iocb *)(uintptr_t)events[i].obj;
    }
    ready = got;
    ended += got;
  }
  report(start, count, count * size);
}

static int connected(const char *family, const char *host, const char *port) {
  int fd;
  if (strcmp(family, "tcp") == 0) {
    int on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    inet_pton(AF_INET, host, &at.sin_addr);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (struct sockaddr *)&at, sizeof at) != 0) fail("connect");
  } else {
    struct sockaddr_vm at = {.svm_family = AF_VSOCK, .svm_cid = atoi(host), .svm_port = atoi(port)};
    fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&at, sizeof at) != 0) fail("connect");
  }
  return fd;
}

static void write_all(int fd, const char *from, size_t length) {
  while (length > 0) {
    ssize_t count = write(fd, from, length);
    if (count <= 0) fail("write");
    from += count, length -= count;
  }
}

static uint64_t read_all(int fd) {
  uint64_t total = 0;
  for (ssize_t count; (count = read(fd, buffer, CHUNK)) > 0;) total += count;
  return total;
}

/* The request is one line of its own length: what to do and with how many bytes. */
static void client(char **argv) {
  char request[32] = {0};
  uint64_t bytes = strtoull(argv[5], NULL, 0);
  snprintf(request, sizeof request, "%s %" PRIu64, argv[1], bytes);
  int fd = connected(argv[2], argv[3], argv[4]);
  write_all(fd, request, sizeof request);
  uint64_t start = now();
  if (argv[1][0] == 's') {
    for (uint64_t left = bytes; left > 0;) {
      size_t part = left < CHUNK ? left : CHUNK;
      write_all(fd, buffer, part);
      left -= part;
    }
    /* The other end answers when it has all. */
    if (read(fd, buffer, 1) != 1) fail("read");
  } else if (argv[1][0] == 'r') {
    if (read_all(fd) != bytes) fail("read");
  } else {
    for (uint64_t i = 0; i < bytes; i++) {
      write_all(fd, buffer, 1);
      if (read(fd, buffer, 1) != 1) fail("read");
    }
  }
  report(start, argv[1][0] == 'p' ? bytes : bytes / CHUNK, bytes);
}

static void serve(int fd) {
  char request[32];
  char what[8];
  uint64_t bytes;
  for (size_t got = 0; got < sizeof request;) {
    ssize_t count = read(fd, request + got, sizeof request - got);
    if (count <= 0) return;
    got += count;
  }
  if (sscanf(request, "%7s %" SCNu64, what, &bytes) != 2) return;
  if (what[0] == 's') {
    while (bytes > 0) {
      ssize_t count = read(fd, buffer, CHUNK);
      if (count <= 0) return;
      bytes -= count;
    }
    write_all(fd, buffer, 1);
  } else if (what[0] == 'r') {
    for (; bytes > 0; bytes -= bytes < CHUNK ? bytes : CHUNK) write_all(fd, buffer, bytes < CHUNK ? bytes : CHUNK);
  } else {
    for (; bytes > 0; bytes--) {
      if (read(fd, buffer, 1) != 1) return;
      write_all(fd, buffer, 1);
    }
  }
}

static void listener(int fd, struct sockaddr *at, socklen_t length) {
  int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(fd, at, length) != 0 || listen(fd, 8) != 0) fail("listen");
  printf("ready\n");
  fflush(stdout);
  for (;;) {
    int other = accept(fd, NULL, NULL);
    if (other < 0) fail("accept");
    setsockopt(other, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    serve(other);
    close(other);
  }
}

int main(int argc, char **argv) {
  if (argc == 8) block(argv);
  else if (argc == 6) client(argv);
  else if (argc == 3 && strcmp(argv[1], "listen-tcp") == 0) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    listener(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&at, sizeof at);
  } else if (argc == 3) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    strncpy(at.sun_path, argv[2], sizeof at.sun_path - 1);
    listener(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&at, sizeof at);
  } else return 2;
  return 0;
}
