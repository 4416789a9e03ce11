/* Between eset.c, which moves the members of a set between the kernel and the rings, and eset_ctl.c. */
#ifndef BERTHA_ESET_MEMBERS_H
#define BERTHA_ESET_MEMBERS_H

#include "eset.h"

/* Of a descriptor (fd_entry.set), beside a set's number. */
#define SET_MANY 0x7fffffffu  /* of a connection: in more than one set */
#define SET_PLAIN 0x7ffffffeu /* of an epoll descriptor: watched before it had members of ours */
#define SET_FRESH 0x7ffffffdu /* of an epoll descriptor: no members of ours yet, and not watched */
#define SET_HIDDEN 0xffffffffu
void eset_set_entry(int fd, uint32_t value);
struct eset *eset_by_entry(uint32_t e);
uint32_t eset_count(void);       /* how many there have been at a time; the entry of the last one */
struct eset *eset_new(int epfd); /* NULL: no more of them */

/* With the set's lock held. */
void eset_drop_slink(struct eset *s, struct slink *k);
void eset_ring_on(struct slink *k, uint32_t slot);
/* From now on the rings serve it.  `op` says whether the kernel knows it already. */
int eset_to_ring(struct eset *s, int fd, struct conn *c, int op);
void eset_leave_ring(struct eset *s, struct reg *r, struct conn *c);
void eset_take_out(struct eset *s, struct reg *r, const struct conn *c); /* REG_OFF */
/* Back to the kernel, with the program's own events; its waits must then hear the byte on the connection. */
void eset_to_kernel(struct eset *s, int fd);
struct epoll_event eset_kernel_event(struct reg *r, int fd);
int eset_kernel_mod(struct eset *s, int fd, struct epoll_event *event);
/* One on a ring whose output is the kernel's lacks room: only the kernel can tell of it. */
void eset_kernels_room(struct eset *s, int fd, const struct conn *c);
void eset_kernel_reg(struct eset *s, struct conn *c, int by);
void eset_queue_upgrade(struct eset *s, int fd);

#endif
