/* Runs `work` and prints a line `bench: NAME NANOSECONDS CHECKSUM`; NAME is the program's own. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "work.h"

int main(int argc, char **argv) {
  const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
  uint64_t start = now();
  uint64_t checksum = work();
  uint64_t end = now();
  printf("bench: %s %" PRIu64 " %016" PRIx64 "\n", slash ? slash + 1 : argv[0], end - start, checksum);
  return 0;
}
