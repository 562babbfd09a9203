/* The C library's qsort: indirect calls of a comparison and moves of small records. */
#include <stdlib.h>

#include "work.h"

struct record {
  uint32_t key;
  uint32_t value;
};

#define COUNT 300000
static struct record records[COUNT];

static int by_key(const void *a, const void *b) {
  const struct record *x = a, *y = b;
  if (x->key != y->key) return x->key < y->key ? -1 : 1;
  return x->value < y->value ? -1 : x->value > y->value;
}

uint64_t work(void) {
  uint64_t state = 88172645463325252ull, sum = 0;
  for (int round = 0; round < 2; round++) {
    for (uint32_t i = 0; i < COUNT; i++) {
      records[i].key = (uint32_t)next_random(&state) % (COUNT / 2);
      records[i].value = i;
    }
    qsort(records, COUNT, sizeof records[0], by_key);
    for (uint32_t i = 0; i < COUNT; i++) sum = sum * 31 + records[i].key * 7u + records[i].value;
  }
  return sum;
}
