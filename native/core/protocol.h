/* Messages between a shim and its agent.
 *
 * A unix SOCK_SEQPACKET connection, one request and one reply at a time, both begun by the shim.  Every
 * message is a bertha_msg header followed by a body of the op's struct; descriptors travel beside it
 * (SCM_RIGHTS).  The agent ends the connection at a message that it cannot understand.  A reply has the
 * request's op and seq; `status` is 0 or an enum bertha_reason, and with a status other than 0 there is
 * no body and there are no descriptors.
 *
 * The agent knows the caller by SO_PEERCRED and SO_PEERPIDFD; the end of the connection ends everything
 * that the process registered.
 */
#ifndef BERTHA_PROTOCOL_H
#define BERTHA_PROTOCOL_H

#include <stdint.h>

#define BERTHA_MSG_MAGIC 0x41545242u /* "BRTA" */
#define BERTHA_PROTOCOL_VERSION 1u
#define BERTHA_MSG_MAX 16384u /* bytes of header and body together */

enum bertha_op {
  BERTHA_OP_HELLO = 1,
  BERTHA_OP_LISTEN = 2,
  BERTHA_OP_UNLISTEN = 3,
  BERTHA_OP_CONNECT = 4,
  BERTHA_OP_LINK = 5,
  BERTHA_OP_BELL_NEW = 6,
  BERTHA_OP_BELL_GET = 7,
  BERTHA_OP_RESOLVE = 8,
  BERTHA_OP_NEGOTIATE = 9,
  BERTHA_OP_CARRIER = 10,
  BERTHA_OP_UNLINK = 11,
  BERTHA_OP_BRING = 12,
  BERTHA_OP_OFFER = 20,
  BERTHA_OP_STATUS = 100,
  BERTHA_OP_STOP = 101,
};

struct bertha_msg {
  uint32_t magic;
  uint16_t version;
  uint16_t op;
  uint32_t seq;
  uint32_t status;
};

/* HELLO + descriptor: the process family's table (may be missing).  Must come first. */
struct bertha_hello {
  uint32_t pid; /* as the process sees it */
  uint32_t layout_version;
  char program[64]; /* basename of the executable, NUL-terminated */
  char name[64];    /* --name, or empty */
  char exe[512];    /* path of the executable */
  char policy[512]; /* absolute path of the policy file, or empty */
  char args[2048];  /* argv, NUL-separated, cut */
  uint32_t args_len;
  char package_version[32];
};
struct bertha_hello_reply {
  uint64_t generation; /* of the directory */
  uint32_t agent_pid;
  uint32_t dag; /* BERTHA_HELLO_* */
};
#define BERTHA_HELLO_CLIENT_DAGS 1u      /* a rule of its policy has chunnels for it as a client */
#define BERTHA_HELLO_CLIENT_DATAGRAMS 2u /* the same for its datagrams */
#define BERTHA_HELLO_SERVER_DATAGRAMS 4u /* and for those of a UDP socket that it binds */
#define BERTHA_HELLO_NO_POLICY 8u        /* its policy file cannot be read or makes no sense */

/* Implementations of local_or_remote, as bits. */
#define BERTHA_IMPL_SHM 1u
#define BERTHA_IMPL_UNIX 2u
#define BERTHA_IMPL_TCP 4u

/* LISTEN + descriptors: the listening socket, or a bound UDP socket; a NETLINK_ROUTE and a NETLINK_SOCK_DIAG socket of the
 * caller's network namespace (by which the agent sees for itself which addresses that namespace has, and
 * which sockets); perhaps a TCP socket of that namespace that listens on the agents' port, and then perhaps a UDP socket
 * that is bound to it, which an agent takes only where it cannot have its own, and from its own user.  The agent closes
 * its copy of the listening socket before it answers. */
struct bertha_listen {
  uint64_t reserved;
};
struct bertha_listen_reply { /* + descriptor: claims */
  uint64_t listener;
  uint32_t implementations; /* allowed by the listener's policy */
  uint32_t dag;             /* enum bertha_dag_need: the chunnels that its policy wants */
};

struct bertha_unlisten { /* no reply */
  uint64_t listener;
};

/* How one pair of a client process and a listener talks. */
struct bertha_plan {
  uint32_t implementation; /* one of BERTHA_IMPL_* */
  uint32_t spin_us;        /* bound on spinning by policy; UINT32_MAX: none given */
  uint32_t ring_size;      /* bytes a ring may grow to (a power of two), 0: default */
  uint32_t reason;         /* why not a better implementation */
};

/* CONNECT: a link from this process to that listener. */
struct bertha_connect {
  uint64_t listener;
  uint8_t server_addr[16];
  uint16_t server_port;
  uint16_t reserved;
  uint32_t reserved2;
  uint64_t netns; /* the client's */
};
/* Whose claims come by a link.  Anybody who has one can write any 4-tuple into it, so users who differ prove that a
 * connection is theirs: its other half, in the server's network namespace, is a socket of theirs (core/claimant.c). */
enum bertha_proof {
  BERTHA_PROOF_NEEDED = 0,
  BERTHA_PROOF_NONE = 1, /* the listener's own user */
  BERTHA_PROOF_ELSEWHERE =
      2 /* of another namespace, whom the listener's policy names: only if the half is not here */
};
struct bertha_claimant {
  uint64_t users; /* the user namespace (its inode) that `uid` is a number of; 0: not known */
  uint32_t uid;
  uint32_t proof; /* enum bertha_proof */
};
/* A plan for `unix` brings a mailbox as the last descriptor: the ends of one SOCK_SEQPACKET socketpair, the first
 * to the client, duplicates of the second to the listener's processes. */
struct bertha_link_reply { /* + descriptors: link, claims (claims for CONNECT only), mailbox */
  uint64_t listener;
  uint32_t index;
  uint32_t reserved;
  struct bertha_plan plan;
  struct bertha_claimant claimant;
};

/* LINK: the listener's side asks for link number `index` of its listener.  UNLINK: the client's side has given up its own
 * of that number, on which it has no connection; the reply has no body. */
struct bertha_link {
  uint64_t listener;
  uint32_t index;
  uint32_t reserved;
};

/* BELL_NEW + descriptor: an eventfd; BELL_GET: the eventfd of somebody with whom the caller has a link. */
struct bertha_bell {
  uint32_t bell;
  uint32_t reserved;
};

/* RESOLVE: several listeners in other namespaces have the address that a client has just connected to;
 * which of them has the other half of this connection?  (sock_diag in their namespaces.)  The reply's
 * listener is 0 when none, or more than one, has it. */
#define BERTHA_RESOLVE_MAX 8
struct bertha_resolve {
  uint8_t client_addr[16];
  uint8_t server_addr[16];
  uint16_t client_port;
  uint16_t server_port;
  uint32_t count;
  uint64_t listeners[BERTHA_RESOLVE_MAX];
};
struct bertha_resolve_reply {
  uint64_t listener;
};

/* NEGOTIATE + descriptors: an unconnected TCP socket of the caller's namespace, of the destination's family, and perhaps
 * a UDP one, by which the agent may reach the destination's agent.  The reply is the header and, for BERTHA_VERDICT_PLAN, the plan.
 * Asked once for each destination; the answer holds for `valid_ms` and while the directory's generation stays, and
 * one that is no plan, while its news do. */
struct bertha_negotiate {
  uint8_t server_addr[16];
  uint16_t server_port;
  uint16_t reserved;    /* BERTHA_NEGOTIATE_FRESH */
  uint32_t patience_ms; /* the caller waits no longer */
  uint64_t netns;
};
#define BERTHA_NEGOTIATE_FRESH 1u     /* the plan of before was refused: not that one again */
#define BERTHA_NEGOTIATE_DATAGRAMS 2u /* it is about a UDP port */
#define BERTHA_NEGOTIATE_MUST 4u /* its policy requires chunnels: it is not plain where that cannot be read */
enum bertha_verdict {
  BERTHA_VERDICT_PLAIN = 0,   /* no chunnels */
  BERTHA_VERDICT_PLAN = 1,    /* by the carrier named, with the plan that follows */
  BERTHA_VERDICT_REFUSED = 2, /* a required chunnel cannot be had: `detail` says which, and why */
  BERTHA_VERDICT_NOBODY =
      3, /* nobody there to ask, `detail` says why; only after OFFER, else this is PLAIN */
};
struct bertha_negotiate_reply {
  uint32_t verdict;
  uint32_t carrier; /* BERTHA_CARRIER_*; about datagrams the same one whatever the destination */
  uint32_t valid_ms;
  uint32_t plan_size;
  uint64_t context; /* what the carrier calls the client's own certificates; 0: the default ones */
  uint32_t spin_us; /* bound by policy on spinning for a ring to the carrier; UINT32_MAX: none given */
  uint32_t reserved;
  char detail[400]; /* one line, NUL-terminated: why not; PLAN: what was left out, empty if nothing */
};

/* CARRIER: the caller's end of a SOCK_SEQPACKET pair to a carrier, which the agent starts if need be (carrier.h). */
#define BERTHA_CARRIER_NATIVE 0u
/* PYTHON runs our own chunnels, as the agent's user, with the cluster key; AUTHORS others' code, as the caller's
 * user, without it. */
#define BERTHA_CARRIER_PYTHON 1u
#define BERTHA_CARRIER_AUTHORS 2u
struct bertha_carrier_request {
  uint32_t carrier;
  uint32_t rings; /* reply: 1: it can be reached over rings, 0: by socketpairs alone */
};

/* BRING: where the classes of chunnels are that the program has registered itself, as if its policy file had a
 * [[chunnel]] for each that it does not name: "NAME\0SOURCE\0" for each of them, all of them each time.  The reply, which
 * has no body, comes when the agent has looked at them. */
#define BERTHA_BRING_MAX 8192u /* bytes of all */

/* OFFER: an application that runs its chunnels itself (bertha_socket.new) says what it brings; once, after HELLO.  The
 * body is an offer as agents exchange it (msgpack, negotiation/offer.py); the reply has none.  From then on LISTEN and
 * NEGOTIATE of this connection are made with that offer instead of the policy's: shims do not give the connections of
 * such a listener to a carrier. */

/* STATUS: reply carries a memfd with a JSON text (for `bertha ps` and `bertha doctor`).  STOP ends the
 * agent (same user only). */

#endif
