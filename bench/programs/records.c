/* Records, pointers, small calls and short copies, the mix that Dhrystone (Weicker 1984) is known for. */
#include <string.h>

#include "work.h"

enum colour { RED, GREEN, BLUE };

struct record {
  struct record *next;
  enum colour colour;
  int number;
  char text[31];
};

static struct record first, second;
static int table[50], grid[50][50];

static __attribute__((noinline)) enum colour pick(int letter, int other) {
  return letter == other ? BLUE : letter & 1 ? RED : GREEN;
}

static __attribute__((noinline)) int same(const char *a, const char *b) {
  int at = 2;
  while (at <= 4 && pick(a[at], b[at + 1]) != BLUE) at++;
  return strcmp(a, b) > 0 ? at + 7 : at;
}

static __attribute__((noinline)) void fill(int value, int place) {
  table[place] = value;
  table[place + 1] = table[place];
  for (int i = place; i <= place + 1; i++) grid[place][i] = place;
  grid[place + 10][place] = table[place] + 3;
  grid[place][place - 1]++;
}

static __attribute__((noinline)) void step(struct record *record) {
  struct record *next = record->next;
  *next = *record;
  next->number = record->number + 5;
  next->next = record;
  if (next->colour == GREEN) {
    next->colour = pick(record->number, 'C');
    next->text[8] = (char)('A' + (record->number & 15));
  } else {
    *record = *next;
    record->next = next;
    record->colour = GREEN;
  }
}

uint64_t work(void) {
  uint64_t sum = 0;
  first = (struct record){&second, GREEN, 40, "RECORDS PROGRAM, SOME STRING"};
  for (int run = 0; run < 4000000; run++) {
    char text[31] = "RECORDS PROGRAM, 2ND STRING";
    text[20] = (char)('A' + run % 26);
    first.next = &second;
    step(&first);
    fill(run & 1023, 8 + run % 20);
    sum = sum * 5 + (unsigned)same(first.text, text) + (unsigned)second.number + (unsigned)table[9];
    int divisor = 1 + run % 7;
    first.number = (int)(sum % 1000) * 3 / divisor - 7 * (run % 3);
  }
  return sum + (unsigned)grid[18][8] + (unsigned)second.colour;
}
