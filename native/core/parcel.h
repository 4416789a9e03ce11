/* What one image of a process leaves for the next: a memfd whose number is in BERTHA_INHERIT ("number:token").
 *
 * Beside it the descriptors that it names stay open across the exec: the family's table and the links.  The parcel
 * holds no position of any ring: these stay in the records of the table (abroad.h). */
#ifndef BERTHA_PARCEL_H
#define BERTHA_PARCEL_H

#include "relay.h"
#include "shim.h"

#define PARCEL_MAGIC 0x4c435250u /* "PRCL" */
#define PARCEL_VARIABLE "BERTHA_INHERIT"
enum { PARCEL_LINKS = 128, PARCEL_TABLES = 32 };

struct parcel_link {
  int32_t fd;
  uint32_t index;
  uint64_t listener;
  struct bertha_plan plan;
  struct bertha_claimant claimant;
  uint32_t side;
  uint32_t reserved;
};

struct parcel_conn {
  uint64_t cookie;
  uint32_t index;      /* of the sender's record, in table 0 */
  uint32_t taken;      /* references that the sender's process had: they end with its image */
  uint32_t home_table; /* which of the tables has the record that is the truth */
  uint32_t home_index;
  uint32_t link; /* + 1 */
  uint32_t kind;
};

struct parcel_header {
  uint32_t magic;
  uint32_t record; /* what a record looks like: sizeof(struct conn) */
  uint64_t token;
  char version[32];
  uint32_t link_count;
  uint32_t table_count;
  uint32_t conn_count;
  uint32_t reserved;
  int32_t tables[PARCEL_TABLES];
  struct parcel_link links[PARCEL_LINKS];
  /* conn_count times struct parcel_conn */
};

/* target.c */
enum target {
  TARGET_SHIMMED, /* our library will be in it */
  TARGET_BARE,    /* it will not */
  TARGET_FAILS,   /* there is nothing to execute */
};
enum target target_of(const char *path, char *const env[]);
/* Where execvp() would find it; false: nowhere. */
bool target_find(const char *file, char *path, size_t size);

/* handover.c */
enum { HANDOVER_RELAYS = 8 };
struct handover {
  bool active;
  bool spawn;
  bool left;    /* what is close-on-exec counts as closed */
  bool leaving; /* orphans_leaving() */
  /* of a spawn: what its file actions copy, -1 at the end; NULL: not known */
  const int *copied;
  int fd;
  unsigned relay_count; /* of a spawn: the new program is to have `end` where it would have had `fd` */
  struct handover_relay {
    uint64_t cookie;
    int fd;
    struct relay relay;
  } relays[HANDOVER_RELAYS];
  char variable[64];
  bool lent[PARCEL_TABLES + PARCEL_LINKS]; /* which of head's descriptors are copies for the next image */
  struct parcel_header head;
};
bool handover_due(void); /* is there anything that an exec would concern? */
/* Before an exec or a spawn of `path` (NULL: one that cannot be told from here).  `spawn`: the child is yet to be made, and `moved` says that it may be told to
 * pass on descriptors that would otherwise be closed.  `env` has room for one more than `from` and receives the new
 * environment.  Safe in a vfork child. */
void handover_begin(struct handover *h, const char *path, bool spawn, bool moved, char *const from[],
                    char *env[]);
void handover_failed(struct handover *h); /* the exec, or the spawn */
void handover_spawned(struct handover *h);

#endif
