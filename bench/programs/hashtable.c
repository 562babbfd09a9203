/* A hash table with chains: allocation, pointers and unpredictable branches. */
#include <stdlib.h>

#include "work.h"

#define BUCKETS 65536

struct entry {
  struct entry *next;
  uint64_t key, count;
};

static struct entry *buckets[BUCKETS];

static struct entry **find(uint64_t key) {
  struct entry **at = &buckets[key * 0x9e3779b97f4a7c15ull >> 48];
  while (*at && (*at)->key != key) at = &(*at)->next;
  return at;
}

uint64_t work(void) {
  uint64_t state = 1234567, sum = 0;
  for (uint32_t i = 0; i < 1500000; i++) {
    uint64_t key = next_random(&state) % 150000;
    struct entry **at = find(key), *entry = *at;
    if (!entry) {
      entry = malloc(sizeof *entry);
      *entry = (struct entry){NULL, key, 1};
      *at = entry;
    } else if (++entry->count % 16 == 0) {
      *at = entry->next;
      sum += entry->key;
      free(entry);
    }
  }
  for (int i = 0; i < BUCKETS; i++) {
    for (struct entry *e = buckets[i]; e; e = e->next) sum = sum * 3 + e->key + e->count;
  }
  return sum;
}
