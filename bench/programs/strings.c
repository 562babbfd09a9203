/* The C library's string functions on short strings, and a sorted linked list of them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "work.h"

struct node {
  struct node *next;
  char text[24];
};

static struct node *insert(struct node *list, const char *text) {
  struct node **at = &list;
  while (*at && strcmp((*at)->text, text) < 0) at = &(*at)->next;
  struct node *node = malloc(sizeof *node);
  strcpy(node->text, text);
  node->next = *at;
  *at = node;
  return list;
}

uint64_t work(void) {
  uint64_t state = 42, sum = MIX_START;
  for (int round = 0; round < 90; round++) {
    struct node *list = NULL;
    char line[8192] = "", word[24];
    for (int i = 0; i < 500; i++) {
      snprintf(word, sizeof word, "%s-%05u", i & 1 ? "left" : "right", (unsigned)(next_random(&state) % 100000));
      list = insert(list, word);
    }
    while (list) {
      struct node *next = list->next;
      strcat(line, list->text);
      if (strstr(line, "left-999") || strchr(list->text, '7')) sum = mix(sum, (unsigned char)strlen(line));
      free(list);
      list = next;
    }
    for (const char *c = line; *c; c++) sum = mix(sum, (unsigned char)*c);
  }
  return sum;
}
