/* PORT tail|size|head: a client that writes nonsense into the memory that it shares with the server, as one that has gone
 * wrong, or means harm, may: how far it has written, how big the ring is, how far it has read. */
#include "common.h"

#include "../../../native/core/layout.h"

/* Ours are in /proc/self/maps; the connection's slot is known by its port. */
static struct bertha_slot *find_slot(uint16_t port) {
  char line[512];
  FILE *maps = fopen("/proc/self/maps", "r");
  MUST(maps != NULL);
  while (fgets(line, sizeof line, maps) != NULL) {
    unsigned long from;
    if (strstr(line, "memfd:bertha-link") == NULL || sscanf(line, "%lx", &from) != 1) {
      continue;
    }
    uint8_t *base = (uint8_t *)from;
    struct bertha_link_header *h = (void *)base;
    if (h->magic != BERTHA_MAGIC_LINK) {
      continue;
    }
    for (uint32_t i = 0; i < h->slot_count; i++) {
      struct bertha_slot *s = (struct bertha_slot *)(base + h->slot_offset) + i;
      if (BERTHA_SLOT_STATE(atomic_load(&s->state)) == BERTHA_SLOT_ATTACHED && s->tuple.client_port == port) {
        fclose(maps);
        return s;
      }
    }
  }
  fclose(maps);
  return NULL;
}

int main(int argc, char **argv) {
  MUST(argc == 3);
  static char much[4096];
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))}, self;
  socklen_t size = sizeof self;
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  MUST(connect(fd, (struct sockaddr *)&to, sizeof to) == 0);
  for (int i = 0; i < 3; i++) { /* both directions are on the ring then */
    MUST(send(fd, "hello", 5, 0) == 5 && recv(fd, much, 5, MSG_WAITALL) == 5);
  }
  MUST(getsockname(fd, (struct sockaddr *)&self, &size) == 0);
  struct bertha_slot *s = find_slot(ntohs(self.sin_port));
  MUST(s != NULL);
  struct bertha_direction *ours = &s->dir[BERTHA_SIDE_CLIENT];
  if (strcmp(argv[2], "tail") == 0) {
    atomic_fetch_add(&ours->tail, (uint64_t)1 << 40);
    shutdown(fd, SHUT_WR); /* which makes the server look */
  } else if (strcmp(argv[2], "size") == 0) {
    atomic_store(&ours->size, 3);
    MUST(send(fd, much, 100, 0) == 100);
  } else {
    atomic_store(&s->dir[BERTHA_SIDE_SERVER].head, (uint64_t)1 << 40);
    MUST(send(fd, much, sizeof much, 0) == (ssize_t)sizeof much);
  }
  char byte;
  MUST(recv(fd, &byte, 1, 0) <= 0); /* the server has given it up */
  printf("ok\n");
  return 0;
}
