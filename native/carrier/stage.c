/* The chunnels that a native carrier has, by their names. */
#include "session.h"

static const struct chunnel_ops *find(const char *type) {
  static const struct chunnel_ops *const all[] = {&chunnel_compress, &chunnel_encrypt, &chunnel_frame};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    if (strcmp(all[i]->type, type) == 0) {
      return all[i];
    }
  }
  return NULL;
}

bool stage_known(const char *type) {
  return find(type) != NULL;
}

struct chunnel *stage_open(const char *type, const char *wire, const struct pack_value *args, bool server,
                           const struct secrets *secrets, const char **why) {
  const struct chunnel_ops *ops = find(type);
  struct chunnel_config config = {.server = server,
                                  .wire = wire,
                                  .args = args,
                                  .certificate = secrets != NULL ? secrets->certificate : NULL,
                                  .key = secrets != NULL ? secrets->key : NULL,
                                  .ca = secrets != NULL ? secrets->ca : NULL};
  *why = "the plan has a chunnel that the native carrier does not have";
  return ops != NULL ? ops->open(&config, why) : NULL;
}
