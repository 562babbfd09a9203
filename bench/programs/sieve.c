/* Sieve of Eratosthenes: byte stores with a growing stride. */
#include <string.h>

#include "work.h"

#define LIMIT 4000000
static unsigned char composite[LIMIT + 1];

uint64_t work(void) {
  uint64_t sum = 0;
  for (int round = 0; round < 10; round++) {
    memset(composite, 0, sizeof composite);
    for (uint32_t i = 2; i * i <= LIMIT; i++) {
      if (composite[i]) continue;
      for (uint32_t j = i * i; j <= LIMIT; j += i) composite[j] = 1;
    }
    for (uint32_t i = 2; i <= LIMIT; i++) sum += composite[i] ? 0 : i;
  }
  return sum;
}
