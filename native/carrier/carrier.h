/* Messages from a shim to a carrier, and the memory by which the carrier answers.
 *
 * A carrier is a process beside the agent through which connections with chunnels run: it has the TCP socket and one
 * end of a socketpair whose other end stands in the place of the program's descriptor.  There is a native one and one
 * in Python; both speak this, of streams and of datagrams.
 *
 * A unix SOCK_SEQPACKET connection, got from the agent (BERTHA_OP_CARRIER); the shim sends, nothing comes back.  All
 * integers are in the machine's own order.  Whose program it is the carrier has from the agent, which has asked the
 * kernel ({"op": "shim", "uid": ..., "gid": ...} with the other end): what a shim says or gives proves nothing.  By that uid
 * it may have the secrets whose number it names, or not ({"op": "context", "listener": ..., "uids": [...]}).
 */
#ifndef BERTHA_CARRIER_H
#define BERTHA_CARRIER_H

#include <stdint.h>

#define BERTHA_CARRIER_MAGIC 0x52414342u /* "BCAR" */
#define BERTHA_CARRIER_VERSION 1u
#define BERTHA_CARRIER_PLAN_MAX 8192u

enum bertha_carrier_kind {
  BERTHA_CARRIER_HELLO = 1,
  BERTHA_CARRIER_CARRY = 2,
  BERTHA_CARRIER_DATAGRAMS = 3, /* a CARRY whose sockets are a UDP one and a SOCK_SEQPACKET pair's end */
  /* To a carrier that the agent says can be reached over rings (core/hop.h). */
  BERTHA_CARRIER_LINK = 4,
  BERTHA_CARRIER_CARRY_RING = 5,
  /* To a carrier in Python: a DATAGRAMS whose pair's other end the native carrier has, beside which it is for chunnels that
   * are not in C.  It sends by the UDP socket, and reads nothing from it. */
  BERTHA_CARRIER_DATAGRAMS_BESIDE = 6,
};

/* First message; + descriptor: the status memfd, an array of bertha_carrier_status.  It is sealed against shrinking, or
 * is then sealed by the carrier. */
struct bertha_carrier_hello {
  uint32_t magic;
  uint16_t version;
  uint16_t kind;
  uint32_t pid; /* as the process sees it */
  uint32_t status_count;
};

enum bertha_carrier_mode {
  BERTHA_CARRY_PLAN = 0,     /* client: the plan is here */
  BERTHA_CARRY_REQUIRED = 1, /* server: who does not know of chunnels is refused */
  BERTHA_CARRY_MAYBE = 2,    /* server: who does not know of chunnels is served plain */
};

/* + descriptors: the TCP socket, the carrier's end of the socketpair. */
struct bertha_carrier_carry {
  uint32_t magic;
  uint16_t version;
  uint16_t kind;
  uint32_t side; /* BERTHA_SIDE_* */
  uint32_t mode;
  uint64_t listener;     /* server: which; client: bertha_negotiate_reply's context; both may be guessed */
  uint32_t status_index; /* where the outcome is to be written */
  uint32_t plan_size;    /* client: bytes that follow */
};

/* + descriptors: a link's sealed memfd, of which the program is the client's side, and the carrier the server's; to the
 * native carrier, an eventfd that wakes it. */
struct bertha_carrier_link {
  uint32_t magic;
  uint16_t version;
  uint16_t kind;
  uint32_t number;  /* of this program's links here, from 0, without a gap */
  uint32_t index;   /* as it stands in the link's header */
  uint32_t spin_us; /* the most to look for its connections before a sleep; UINT32_MAX: nobody says */
};
#define BERTHA_CARRIER_LINKS 8u

/* As bertha_carrier_carry, with the same descriptors; both directions are on the slot's rings from their first byte,
 * and the socketpair is the kernel's connection beneath.  To a carrier in Python, whose connections may have processes of
 * their own: + an eventfd that wakes the one that has this slot.  The plan follows. */
struct bertha_carrier_carry_ring {
  struct bertha_carrier_carry carry;
  uint32_t link;
  uint32_t slot;
};

enum bertha_carrier_state {
  BERTHA_CARRIED_PENDING = 0,
  BERTHA_CARRIED_READY = 1,   /* both ends agree: `chunnels` says what runs */
  BERTHA_CARRIED_REFUSED = 2, /* `detail` says why; nothing was passed on in either direction */
  BERTHA_CARRIED_RESET = 3,   /* was ready, and ended by a reset or an error: `detail` */
  BERTHA_CARRIED_PLAIN = 4,   /* passed through as it is */
  BERTHA_CARRIED_RAISED = 5,  /* as RESET, at any time: a chunnel's code raised, blocked or died */
};

/* Written by the carrier; `state` last, with release order.  Texts end with NUL. */
struct bertha_carrier_status {
  uint32_t state;
  uint32_t life;      /* written by the shim: the carrier writes nothing once it is another connection's */
  char chunnels[616]; /* JSON array of {type, implementation, where}, from the application downwards */
  char detail[396];   /* one line */
  /* The program is being told of the stream's end: without this, what a socketpair calls its end is the carrier's. */
  uint32_t ended;
};

/* What goes through a pair whose other end stands in the place of a UDP socket: one of these and then a datagram's
 * bytes, or a plan's.  Native byte order; an IPv4 address is written v4-mapped. */
#define BERTHA_DGRAM_MAGIC 0xbd47u
enum bertha_dgram_kind {
  /* Both ways: to, or from, that address.  From the program: `value` is the bytes of each of the datagrams that it is
   * (UDP_SEGMENT), all but the last of which have so many; 0: it is one. */
  BERTHA_DGRAM_DATA = 1,
  BERTHA_DGRAM_PLAN =
      2, /* to the carrier: what is sent to that address goes by this plan; `value`: the context */
  BERTHA_DGRAM_ERROR = 3,   /* to the program: `value` is an errno, which its next call returns */
  BERTHA_DGRAM_REFUSED = 4, /* to the program: the plan for that address was refused there: ask for another */
  BERTHA_DGRAM_NO_AGENT =
      5, /* to the program, again and again: tell the next agent of this socket, if there is one */
  /* To the program: chunnels are wanted that the native carrier does not have.  To the native carrier: + descriptor, the
   * end of another such pair, whose other end a carrier in Python has. */
  BERTHA_DGRAM_BESIDE = 6,
  /* Between these two carriers, besides DATA, PLAN, ERROR and REFUSED, which are the program's: */
  BERTHA_DGRAM_NETWORK = 7, /* to the one beside: this has come from that address */
  BERTHA_DGRAM_CLOSED = 8,  /* to the one beside: the program has closed */
  BERTHA_DGRAM_FULL = 9,    /* to the native one: `value` 1: no more of the program's for now, 0: again */
  /* To the native one: `value` is an enum bertha_carrier_state; the chunnels' text, NUL, and the detail follow. */
  BERTHA_DGRAM_STATUS = 10,
};
struct bertha_dgram {
  uint16_t magic;
  uint16_t kind;
  uint16_t port;
  uint16_t reserved;
  uint32_t scope; /* sin6_scope_id */
  uint32_t reserved2;
  uint64_t value;
  uint8_t addr[16];
};
#define BERTHA_DGRAM_MAX 65507u /* bytes of one datagram */

#endif
