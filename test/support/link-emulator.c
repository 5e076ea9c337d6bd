/*
 * A network path in user space: forwards Ethernet frames between two interfaces with a delay, random loss, a rate and a
 * bounded queue, each direction on its own. It stands in for the kernel's netem, which not every kernel has.
 *
 *   link-emulator IF0 IF1 DELAY_MS LOSS_PERCENT RATE_KBIT QUEUE_PACKETS SEED     (rate 0: unlimited)
 *   link-emulator plain IF                                                       turns an interface's offloads off
 *
 * Offloads are off on every interface of the path, or what passes are joined segments of 64 KiB without checksums.
 * It prints "ready" when it forwards, and runs until it is killed or its standard input ends.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/ethtool.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FRAME_BYTES = 2048, MAX_QUEUE_PACKETS = 100000 };

struct packet {
  int64_t due;
  int length;
  unsigned char bytes[MAX_FRAME_BYTES];
};

/* A ring: `count` packets from `head` on, in the order of their due times. */
struct direction {
  int from, to;
  int64_t free_at;
  int head, count, capacity;
  struct packet *ring;
};

static int64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void die(const char *what) {
  perror(what);
  exit(1);
}

/* xorshift64*: the same seed drops the same packets of the same traffic. */
static uint64_t random_state;
static double random_share(void) {
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return (double)((random_state * 2685821657736338717ULL) >> 11) / 9007199254740992.0;
}

static int plain(const char *name) {
  const uint32_t commands[] = {ETHTOOL_STXCSUM, ETHTOOL_SRXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO, ETHTOOL_SSG};
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  if (fd < 0) die("socket");
  for (unsigned index = 0; index < sizeof commands / sizeof *commands; index++) {
    struct ethtool_value value = {.cmd = commands[index], .data = 0};
    struct ifreq request;
    memset(&request, 0, sizeof request);
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    request.ifr_data = (void *)&value;
    /* Some interfaces do not know all of them; what they do not know they do not do. */
    if (ioctl(fd, SIOCETHTOOL, &request) < 0 && errno != EOPNOTSUPP && errno != EINVAL) die(name);
  }
  return 0;
}

static int open_interface(const char *name) {
  int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, htons(ETH_P_ALL));
  if (fd < 0) die("AF_PACKET");
  struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
  address.sll_ifindex = (int)if_nametoindex(name);
  if (address.sll_ifindex == 0) die(name);
  if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) die("bind");
  struct packet_mreq membership = {.mr_ifindex = address.sll_ifindex, .mr_type = PACKET_MR_PROMISC};
  if (setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &membership, sizeof membership) < 0) die("promiscuous");
  int bytes = 8 << 20;
  if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) < 0) die("receive buffer");
  return fd;
}

static void take(struct direction *way, int64_t delay, double loss, double ns_per_byte) {
  for (;;) {
    unsigned char bytes[MAX_FRAME_BYTES];
    struct sockaddr_ll sender;
    socklen_t size = sizeof sender;
    ssize_t length = recvfrom(way->from, bytes, sizeof bytes, MSG_TRUNC, (struct sockaddr *)&sender, &size);
    if (length < 0) return;
    /* What we sent ourselves comes back as outgoing. */
    if (sender.sll_pkttype == PACKET_OUTGOING || length > (ssize_t)sizeof bytes) continue;
    if (random_share() < loss || way->count == way->capacity) continue;
    int64_t now = now_ns();
    if (way->free_at < now) way->free_at = now;
    way->free_at += (int64_t)(ns_per_byte * (double)length);
    struct packet *packet = &way->ring[(way->head + way->count) % way->capacity];
    packet->due = way->free_at + delay;
    packet->length = (int)length;
    memcpy(packet->bytes, bytes, (size_t)length);
    way->count++;
  }
}

static void give(struct direction *way) {
  int64_t now = now_ns();
  while (way->count > 0 && way->ring[way->head].due <= now) {
    struct packet *packet = &way->ring[way->head];
    /* A frame that the interface does not take is one more lost packet. */
    if (send(way->to, packet->bytes, (size_t)packet->length, 0) < 0 && errno == ENETDOWN) die("send");
    way->head = (way->head + 1) % way->capacity;
    way->count--;
  }
}

int main(int count, char **arguments) {
  if (count == 3 && strcmp(arguments[1], "plain") == 0) return plain(arguments[2]);
  if (count != 8) {
    fprintf(stderr, "usage: link-emulator IF0 IF1 DELAY_MS LOSS_PERCENT RATE_KBIT QUEUE_PACKETS SEED\n");
    return 64;
  }
  const int64_t delay = (int64_t)(atof(arguments[3]) * 1e6);
  const double loss = atof(arguments[4]) / 100;
  const double rate = atof(arguments[5]);
  const double ns_per_byte = rate > 0 ? 8e6 / rate : 0;
  const int capacity = atoi(arguments[6]);
  random_state = strtoull(arguments[7], NULL, 10) * 2 + 1;
  if (capacity < 1 || capacity > MAX_QUEUE_PACKETS) return 64;
  const int fds[2] = {open_interface(arguments[1]), open_interface(arguments[2])};
  struct direction ways[2];
  for (int index = 0; index < 2; index++) {
    struct direction way = {.from = fds[index], .to = fds[1 - index], .capacity = capacity};
    way.ring = malloc((size_t)capacity * sizeof *way.ring);
    if (way.ring == NULL) die("malloc");
    ways[index] = way;
  }
  printf("ready\n");
  fflush(stdout);
  for (;;) {
    int64_t next = -1;
    for (int index = 0; index < 2; index++) {
      if (ways[index].count == 0) continue;
      int64_t due = ways[index].ring[ways[index].head].due;
      if (next < 0 || due < next) next = due;
    }
    struct pollfd polled[3] = {
        {.fd = fds[0], .events = POLLIN}, {.fd = fds[1], .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};
    int64_t wait = next < 0 ? 1000000000 : next - now_ns();
    struct timespec timeout = {.tv_sec = 0, .tv_nsec = 0};
    if (wait > 0) {
      timeout.tv_sec = wait / 1000000000;
      timeout.tv_nsec = wait % 1000000000;
    }
    if (ppoll(polled, 3, &timeout, NULL) < 0 && errno != EINTR) die("poll");
    /* Whoever started it is gone. */
    if (polled[2].revents & (POLLHUP | POLLERR)) return 0;
    for (int index = 0; index < 2; index++) {
      take(&ways[index], delay, loss, ns_per_byte);
      give(&ways[index]);
    }
  }
}
