/* Shifts and exclusive ors of one 64-bit register, with a multiplication now and then. */
#include "work.h"

uint64_t work(void) {
  uint64_t state = 0x9e3779b97f4a7c15ull, sum = 0;
  for (uint32_t i = 0; i < 240000000; i++) {
    uint64_t x = next_random(&state);
    if ((x & 15) == 0) sum += x * 0x2545f4914f6cdd1dull;
  }
  return sum ^ state;
}
