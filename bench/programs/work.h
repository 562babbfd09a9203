/* One benchmark program: `work` does a fixed amount of work and returns a checksum of its result. */
#ifndef WORK_H
#define WORK_H

#include <stdint.h>
#include <time.h>

uint64_t work(void);

/* Nanoseconds of a clock that is never set. */
static inline uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Next number of a fixed sequence (xorshift64, Marsaglia 2003). The state must not be 0. */
static inline uint64_t next_random(uint64_t *state) {
  uint64_t x = *state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return *state = x;
}

/* FNV-1a, one byte more. */
static inline uint64_t mix(uint64_t hash, unsigned char byte) { return (hash ^ byte) * 0x100000001b3ull; }
#define MIX_START 0xcbf29ce484222325ull

#endif
