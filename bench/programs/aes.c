/* AES-128 (FIPS 197) in CBC mode, byte by byte: table look-ups and exclusive ors. */
#include <string.h>

#include "work.h"

static unsigned char sbox[256];

static unsigned char times2(unsigned char x) { return (unsigned char)(x << 1 ^ (x & 0x80 ? 0x1b : 0)); }

static void make_sbox(void) {
  unsigned char p = 1, q = 1;
  do {
    p = (unsigned char)(p ^ times2(p));
    q = (unsigned char)(q ^ q << 1);
    q = (unsigned char)(q ^ q << 2);
    q = (unsigned char)(q ^ q << 4);
    if (q & 0x80) q ^= 0x09;
    unsigned x = q ^ (q << 1 | q >> 7) ^ (q << 2 | q >> 6) ^ (q << 3 | q >> 5) ^ (q << 4 | q >> 4);
    sbox[p] = (unsigned char)(x ^ 0x63);
  } while (p != 1);
  sbox[0] = 0x63;
}

static void expand_key(const unsigned char key[16], unsigned char keys[176]) {
  unsigned char round = 1;
  memcpy(keys, key, 16);
  for (int i = 16; i < 176; i += 4) {
    unsigned char t[4];
    memcpy(t, keys + i - 4, 4);
    if (i % 16 == 0) {
      unsigned char first = t[0];
      t[0] = (unsigned char)(sbox[t[1]] ^ round);
      t[1] = sbox[t[2]], t[2] = sbox[t[3]], t[3] = sbox[first];
      round = times2(round);
    }
    for (int j = 0; j < 4; j++) keys[i + j] = keys[i - 16 + j] ^ t[j];
  }
}

static void encrypt(unsigned char s[16], const unsigned char keys[176]) {
  unsigned char t[16];
  for (int i = 0; i < 16; i++) s[i] ^= keys[i];
  for (int round = 1; round <= 10; round++) {
    for (int i = 0; i < 16; i++) t[i] = sbox[s[(i + 4 * (i & 3)) & 15]];
    for (int c = 0; c < 16; c += 4) {
      unsigned char all = t[c] ^ t[c + 1] ^ t[c + 2] ^ t[c + 3];
      for (int i = 0; i < 4; i++) {
        unsigned char mixed = round == 10 ? 0 : (unsigned char)(all ^ times2(t[c + i] ^ t[c + ((i + 1) & 3)]));
        s[c + i] = (unsigned char)(t[c + i] ^ mixed ^ keys[16 * round + c + i]);
      }
    }
  }
}

uint64_t work(void) {
  static unsigned char data[16384];
  unsigned char key[16], keys[176], state[16] = {0};
  for (int i = 0; i < 16; i++) key[i] = (unsigned char)(i * 17);
  make_sbox();
  expand_key(key, keys);
  for (int round = 0; round < 400; round++) {
    for (unsigned at = 0; at < sizeof data; at += 16) {
      for (int i = 0; i < 16; i++) state[i] ^= data[at + i];
      encrypt(state, keys);
      memcpy(data + at, state, 16);
    }
  }
  uint64_t sum = MIX_START;
  for (int i = 0; i < 16; i++) sum = mix(sum, state[i]);
  return sum;
}
