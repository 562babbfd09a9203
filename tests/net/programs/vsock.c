/*
 * A guest's end of vsock connections.
 *   vsock echo PORT              serves connections to PORT, each until the other end stops sending
 *   vsock send PORT COUNT BYTES  COUNT connections at once to the host's PORT; each sends BYTES and checks that the
 *                                same bytes come back
 *   vsock connect PORT           prints the error of connecting to the host's PORT, or "connected"
 *   vsock read PORT              connects to the host's PORT, reads nothing for a second, then all; prints the count
 *   vsock fill PORT LIMIT        connects to the host's PORT until that fails, at most LIMIT times, and sends a number on
 *                                each connection, which must come back; waits for the host to end the last one, ends
 *                                all others, and connects once more
 */
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

#define CHUNK 65536

static struct sockaddr_vm address(unsigned cid, unsigned port) {
  struct sockaddr_vm at;
  memset(&at, 0, sizeof at);
  at.svm_family = AF_VSOCK;
  at.svm_cid = cid;
  at.svm_port = port;
  return at;
}

static void fail(const char *what) {
  printf("%s: %s\n", what, strerror(errno));
  exit(1);
}

static int connect_host(unsigned port) {
  int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
  struct sockaddr_vm at = address(VMADDR_CID_HOST, port);
  if (fd < 0) fail("socket");
  return connect(fd, (struct sockaddr *)&at, sizeof at) == 0 ? fd : -1;
}

static void send_all(int fd, const char *bytes, size_t count) {
  while (count > 0) {
    ssize_t n = send(fd, bytes, count, MSG_NOSIGNAL);
    if (n < 0) fail("send");
    bytes += n;
    count -= n;
  }
}

static void echo(unsigned port) {
  static char buffer[CHUNK];
  int listener = socket(AF_VSOCK, SOCK_STREAM, 0);
  struct sockaddr_vm at = address(VMADDR_CID_ANY, port);
  if (listener < 0) fail("socket");
  if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0) fail("bind");
  if (listen(listener, 128) < 0) fail("listen");
  printf("listening\n");
  fflush(stdout);
  for (;;) {
    int fd = accept(listener, NULL, NULL);
    if (fd < 0) fail("accept");
    while (waitpid(-1, NULL, WNOHANG) > 0);
    if (fork() == 0) {
      ssize_t n;
      close(listener);
      while ((n = recv(fd, buffer, sizeof buffer, 0)) > 0) send_all(fd, buffer, n);
      if (n < 0) fail("recv");
      shutdown(fd, SHUT_WR);
      exit(0);
    }
    close(fd);
  }
}

/* The byte at `at` of what connection `which` sends. */
static char pattern(unsigned which, uint64_t at) {
  return (char)((at * 2654435761u >> 8) + which * 31 + at);
}

static void send_and_check(unsigned port, unsigned which, uint64_t bytes) {
  static char out[CHUNK], in[CHUNK];
  int fd = connect_host(port);
  uint64_t sent = 0, got = 0;
  if (fd < 0) fail("connect");
  while (got < bytes) {
    struct pollfd p = {fd, POLLIN | (sent < bytes ? POLLOUT : 0), 0};
    if (poll(&p, 1, -1) < 0) fail("poll");
    if (p.revents & POLLOUT) {
      size_t n = bytes - sent < CHUNK ? bytes - sent : CHUNK;
      for (size_t i = 0; i < n; i++) out[i] = pattern(which, sent + i);
      ssize_t done = send(fd, out, n, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (done < 0 && errno != EAGAIN) fail("send");
      if (done > 0) sent += done;
      if (sent == bytes) shutdown(fd, SHUT_WR);
    }
    if (p.revents & (POLLIN | POLLHUP)) {
      ssize_t n = recv(fd, in, CHUNK, MSG_DONTWAIT);
      if (n < 0 && errno != EAGAIN) fail("recv");
      if (n == 0) {
        printf("end after %llu of %llu bytes\n", (unsigned long long)got, (unsigned long long)bytes);
        exit(1);
      }
      for (ssize_t i = 0; i < n; i++) {
        if (in[i] != pattern(which, got + i)) {
          printf("wrong byte at %llu\n", (unsigned long long)(got + i));
          exit(1);
        }
      }
      if (n > 0) got += n;
    }
  }
  if (recv(fd, in, 1, 0) != 0) {
    printf("more than was sent\n");
    exit(1);
  }
  exit(0);
}

static void fill(unsigned port, unsigned limit) {
  int *fds = calloc(limit, sizeof *fds);
  unsigned count = 0, good = 0, value;
  struct rlimit files = {limit + 16, limit + 16};
  if (fds == NULL || setrlimit(RLIMIT_NOFILE, &files) < 0) fail("setrlimit");
  while (count < limit && (fds[count] = connect_host(port)) >= 0) count++;
  printf("%u open: %s\n", count, count < limit ? strerror(errno) : "no more are needed");
  for (unsigned i = 0; i < count; i++) send_all(fds[i], (char *)&i, sizeof i);
  for (unsigned i = 0; i < count; i++)
    if (recv(fds[i], &value, sizeof value, MSG_WAITALL) == sizeof value && value == i) good++;
  printf("%u good\n", good);
  fflush(stdout);
  if (count > 0 && recv(fds[count - 1], &value, 1, 0) == 0) printf("the host has ended the last\n");
  for (unsigned i = 0; i < count; i++) close(fds[i]);
  /* The host hears of the ends one after the other. */
  while ((fds[0] = connect_host(port)) < 0 && errno == ECONNRESET) usleep(1000);
  printf("once more: %s\n", fds[0] < 0 ? strerror(errno) : "connected");
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  unsigned port = strtoul(argv[2], NULL, 10);
  if (strcmp(argv[1], "echo") == 0) {
    echo(port);
  } else if (strcmp(argv[1], "send") == 0 && argc == 5) {
    unsigned count = strtoul(argv[3], NULL, 10), good = 0;
    uint64_t bytes = strtoull(argv[4], NULL, 10);
    for (unsigned i = 0; i < count; i++)
      if (fork() == 0) send_and_check(port, i, bytes);
    for (unsigned i = 0; i < count; i++) {
      int status;
      wait(&status);
      if (status == 0) good++;
    }
    printf("%u of %u good\n", good, count);
  } else if (strcmp(argv[1], "connect") == 0) {
    int fd = connect_host(port);
    printf("%s\n", fd < 0 ? strerror(errno) : "connected");
  } else if (strcmp(argv[1], "fill") == 0 && argc == 4) {
    fill(port, strtoul(argv[3], NULL, 10));
  } else if (strcmp(argv[1], "read") == 0) {
    static char buffer[CHUNK];
    unsigned long long total = 0;
    ssize_t n;
    int fd = connect_host(port);
    if (fd < 0) fail("connect");
    printf("connected\n");
    fflush(stdout);
    sleep(1);
    while ((n = recv(fd, buffer, sizeof buffer, 0)) > 0) total += n;
    printf("read %llu\n", total);
  } else {
    return 2;
  }
  return 0;
}
