/* The shim's side of the conversation with the agent (protocol.h), the directory, listeners and links. */
#ifndef BERTHA_AGENTC_H
#define BERTHA_AGENTC_H

#include "shim.h"

/* 0, or an enum bertha_reason.  `fds` receives up to `max_fds` descriptors, the rest -1. */
uint32_t agent_call(enum bertha_op op, const void *body, size_t body_size, const int *send_fds,
                    int send_count, void *reply, size_t reply_size, int *fds, int max_fds);
void agent_greet(void);          /* so that agent_client_dags() knows */
bool agent_client_dags(void);    /* this process's policy has chunnels for its connections as a client */
bool agent_dags(uint32_t which); /* BERTHA_HELLO_*: what the agent has said of its policy */
bool agent_is_met(void);         /* by this process; or it has something to tell the agent */
bool agent_has_gone(void);       /* it has answered this process once, and is not there any more */
bool agent_bring(const char *pairs,
                 size_t size); /* BRING to this agent and all later ones; false: too much */
void agent_after_fork(void);
void agent_fd_moved(int from, int to);

/* directory.c */
struct dir_hit {
  uint64_t listener;
  uint64_t netns;
  uint32_t uid;
  uint16_t flags; /* BERTHA_DIR_* */
  uint64_t brief; /* bertha_brief_word() */
};
/* Listeners that a connect() to this address may reach; those of the caller's own namespace first. */
int directory_find(const uint8_t addr[16], uint16_t port, struct dir_hit *hits, int max);
int directory_find_datagrams(const uint8_t addr[16], uint16_t port, struct dir_hit *hits,
                             int max);                           /* UDP sockets */
bool directory_datagrams(const uint8_t addr[16], uint16_t port); /* a UDP socket there may have chunnels */
uint64_t directory_generation(void);                             /* 0: no agent is serving */
uint32_t directory_news(void);                                   /* another number: to be asked again */
void directory_after_fork(void);
uint64_t bertha_netns(int any_socket);

/* link.c */
struct listener *listener_register(int fd, uint32_t *why);
struct listener *listener_get(uint64_t id);
void listener_closed(struct listener *l); /* no socket of this family's listens there any more */
/* What it returns is `c`'s, which is yet to be connected; NULL: it counts as one of the link's pairs, until it is let go. */
struct link *link_to(struct conn *c, uint64_t listener, const uint8_t addr[16], uint16_t port, uint64_t netns,
                     uint32_t *why);
struct link *link_fetch(struct listener *listener, uint32_t index, uint32_t *why);
/* One that an earlier image had: no new connection is made on it.  Takes the descriptor over. */
struct link *link_inherit(int fd, int side, const struct bertha_link_reply *reply);
/* A link that no agent has made (hop.h).  Takes the descriptor over. */
struct link *link_adopt(int fd, int side, const struct bertha_link_reply *reply);
void link_drop(struct link *link); /* when nobody else can be looking at it */
void link_fd_moved(int from, int to);
void links_hold_again(
    void); /* a descriptor that may have been a link's is closed: a lock on it is gone (fcntl(2)) */
void link_after_fork(void);
bool link_held(const struct link *link); /* its client process lives */
/* For the log of a server's connection: what the client's go without, and why.  `link` may be no link of this process's. */
bool link_left_out(const struct link *link, char *to, size_t size);
uint8_t *link_ring(const struct link *link, uint32_t slot, int side);
struct bertha_loan *link_loan(const struct link *link, uint32_t slot); /* NULL: it has none */
int slot_take(struct link *link);                                      /* -1: none free */
void slot_give_back(struct link *link, uint32_t slot);
void slot_leave(const struct link *link, uint32_t slot,
                int side); /* the same for a server, or one that took no slot */

/* claims.c */
uint32_t tuple_tag(const uint8_t client_addr[16], uint16_t client_port);
bool claim_publish(struct bertha_claims_header *claims, uint32_t tag, uint64_t word);
void claim_withdraw(struct bertha_claims_header *claims, uint32_t tag, uint64_t word);
int claim_find(struct bertha_claims_header *claims, uint32_t tag, uint64_t *words);

/* inherit.c */
void inherit_connections(void);
void inherit_fd_moved(int from, int to);

#endif
