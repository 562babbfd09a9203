/* Double-precision arithmetic: a product of matrices, and planets that attract each other. */
#include <math.h>
#include <string.h>

#include "work.h"

#define SIZE 160
static double a[SIZE][SIZE], b[SIZE][SIZE], c[SIZE][SIZE];

static double matrices(void) {
  for (int i = 0; i < SIZE; i++) {
    for (int j = 0; j < SIZE; j++) {
      a[i][j] = (double)(i * 3 + j) / (SIZE + 1);
      b[i][j] = (double)(i - j * 2) / (SIZE - 1);
    }
  }
  for (int i = 0; i < SIZE; i++) {
    for (int j = 0; j < SIZE; j++) {
      double sum = 0;
      for (int k = 0; k < SIZE; k++) sum += a[i][k] * b[k][j];
      c[i][j] = sum;
    }
  }
  return c[SIZE / 3][SIZE / 2] + c[SIZE - 1][1];
}

#define BODIES 5

static double planets(void) {
  double p[BODIES][3], v[BODIES][3], m[BODIES];
  for (int i = 0; i < BODIES; i++) {
    m[i] = i == 0 ? 40 : 0.01 * i;
    for (int k = 0; k < 3; k++) p[i][k] = i * (k + 1.5), v[i][k] = i == 0 ? 0 : 0.1 * (k - i);
  }
  for (int step = 0; step < 200000; step++) {
    for (int i = 0; i < BODIES; i++) {
      for (int j = i + 1; j < BODIES; j++) {
        double d[3], square = 0.01;
        for (int k = 0; k < 3; k++) d[k] = p[i][k] - p[j][k], square += d[k] * d[k];
        double pull = 0.001 / (square * sqrt(square));
        for (int k = 0; k < 3; k++) v[i][k] -= d[k] * m[j] * pull, v[j][k] += d[k] * m[i] * pull;
      }
    }
    for (int i = 0; i < BODIES; i++) {
      for (int k = 0; k < 3; k++) p[i][k] += 0.001 * v[i][k];
    }
  }
  return p[1][0] + p[4][2];
}

uint64_t work(void) {
  double result = matrices() + planets();
  uint64_t bits;
  memcpy(&bits, &result, sizeof bits);
  return bits;
}
