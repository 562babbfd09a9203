/*
 * timed NAME PROGRAM ARGUMENTS...: runs a program and prints `bench: NAME NANOSECONDS CHECKSUM`, with the time from
 * its start to its end and a checksum of what it wrote to its standard output.
 */
#include <inttypes.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "work.h"

int main(int argc, char **argv) {
  int ends[2];
  if (argc < 3 || pipe(ends) != 0) return 2;
  uint64_t start = now();
  pid_t child = fork();
  if (child < 0) return 2;
  if (child == 0) {
    dup2(ends[1], STDOUT_FILENO);
    close(ends[0]);
    close(ends[1]);
    execv(argv[2], argv + 2);
    _exit(127);
  }
  close(ends[1]);
  static unsigned char buffer[65536];
  uint64_t checksum = MIX_START;
  ssize_t count;
  while ((count = read(ends[0], buffer, sizeof buffer)) > 0) {
    for (ssize_t i = 0; i < count; i++) checksum = mix(checksum, buffer[i]);
  }
  int status;
  waitpid(child, &status, 0);
  uint64_t end = now();
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    fprintf(stderr, "timed: %s failed, status %d\n", argv[1], status);
    return 1;
  }
  printf("bench: %s %" PRIu64 " %016" PRIx64 "\n", argv[1], end - start, checksum);
  return 0;
}
