/* Fibonacci numbers by recursion: calls, returns and the stack. */
#include "work.h"

static __attribute__((noinline, optimize("no-optimize-sibling-calls"))) uint64_t fib(unsigned n) {
  return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

uint64_t work(void) { return fib(37); }
