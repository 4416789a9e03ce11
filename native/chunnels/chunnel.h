/* What a chunnel is to the native carrier: a stage between two buffers in each direction, without I/O. */
#ifndef BERTHA_CHUNNEL_H
#define BERTHA_CHUNNEL_H

#include "../carrier/buffer.h"
#include "../carrier/pack.h"

/* A stage stops when what it writes to holds this much; what it reads waits. */
#define CHUNNEL_ENOUGH (256u * 1024)

struct chunnel;

struct chunnel_config {
  bool server;
  const char *wire;
  const struct pack_value *args; /* a map */
  const char *certificate;       /* PEM; NULL: none */
  const char *key;
  const char *ca;
};

struct chunnel_ops {
  const char *type;
  struct chunnel *(*open)(const struct chunnel_config *config, const char **why); /* NULL, and why */
  /* Towards the network: takes of `in` what it can.  `end`: no more will come; once everything is in `out`, also what
   * the end itself needs, sets down_done.  False: it has failed, `why` says how. */
  bool (*down)(struct chunnel *c, struct buffer *in, struct buffer *out, bool end);
  /* From the network; `back` takes what it answers downwards by itself.  Sets up_done at the end of the stream. */
  bool (*up)(struct chunnel *c, struct buffer *in, struct buffer *out, struct buffer *back, bool end);
  void (*close)(struct chunnel *c);
  void (*idle)(struct chunnel *c); /* nothing is under way: memory may go; NULL: it keeps none */
};

struct chunnel { /* the first member of each type's own struct */
  const struct chunnel_ops *ops;
  bool down_done;
  bool up_done;
  char why[200];
};

extern const struct chunnel_ops chunnel_compress;
extern const struct chunnel_ops chunnel_encrypt;
extern const struct chunnel_ops chunnel_frame;

#endif
