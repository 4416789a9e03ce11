/* Programs that do one of several things, by its name. */
#ifndef BERTHA_TEST_NAMED_H
#define BERTHA_TEST_NAMED_H

#include <stddef.h>
#include <string.h>

struct named {
  const char *name;
  void (*run)(void);
};

/* What main() returns. */
static inline int run_named(const struct named *all, size_t count, const char *name) {
  for (size_t i = 0; i < count; i++) {
    if (strcmp(all[i].name, name) == 0) {
      all[i].run();
      return 0;
    }
  }
  return 2;
}

#endif
