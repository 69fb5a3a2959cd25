/*
 * What `relay.c`, `regulars.c` and `pace.c` know of each other. Who has a descriptor is found by its number, so that
 * what the kernel says of a descriptor that has changed hands meanwhile reaches nobody who is gone.
 */

#ifndef EXEAT_RELAY_H
#define EXEAT_RELAY_H

#include <stddef.h>
#include <stdint.h>

#define PUBLIC __attribute__((visibility("default")))
#define MS INT64_C(1000000) /* ns */

/* What happened to a descriptor of the caller's: epoll's events, or one of the bits above them. */
struct answer {
	int32_t fd;
	uint32_t events;
};

enum { NEWS = 1 << 24 }; /* of a gate's listener: `exeat_news` has some */

/* Who has a descriptor that is in `set`. `ready` does what there is to do; returns how many answers that gave: 0 or 1. */
struct watched {
	int set;
	int (*ready)(struct watched *who, uint32_t events, struct answer *answer);
};

/* How a pair is over; none of these bits is one of epoll's. */
enum over { OPEN = 0, IN_PEACE = 1 << 16, NEAR_BROKE = 2 << 16, FAR_BROKE = 3 << 16, FAILED = 4 << 16 };

struct end {
	struct watched watched;
	struct pair *pair;
	struct end *other;
	char *kept; /* what it was given and didn't take yet; `kept_from` is how much of it went since */
	size_t kept_from, kept_to;
	uint64_t taken; /* bytes */
	int64_t since;  /* ns, `now`: when it took the first of them */
	uint32_t waits_for;
	int fd;
	int silent; /* it has said all it will */
};

struct pair {
	struct end near, far;
	int (*tell)(struct pair *pair, struct answer *answer); /* of its end, as `ready` does */
	int64_t *backlog;                                      /* bytes that its tenant's full sockets have waiting */
	int64_t most_kept; /* of those; beyond, they are read in small pieces */
	int error;         /* errno of what broke it */
	enum over over;
	int is_told;
};

int64_t now(void); /* ns, of the clock that Python's time.monotonic() has */
extern uint64_t turn; /* how many times anybody was served */

/* The table. -1: there is no memory. */
int watch(int fd, struct watched *who);
struct watched *watcher(int fd);
void unwatch(int fd, const struct watched *who);

/* Put a pair together of two descriptors, neither of which is waited on so far. -1: there is no memory. */
int join(struct pair *pair, int set, int near, int far);
/* Wait for what an end does; for nothing means to be out of the set. */
void wait_for(struct end *end, uint32_t events);
/* Begin. What the near side has `said` was judged, and goes on as it was: it is read once more and thrown away, for until
 * then a program can change what it has sent (sendfile(2), splice(2)). Where nothing was judged, `size` is 0. */
void begin(struct pair *pair, const char *said, size_t size);
/* Let go of both, and of what is kept for them. */
void part(struct pair *pair);
/* The pair that has a descriptor, if one has. */
struct pair *pair_of(int fd);
/* Tell of a pair by its near descriptor, once. */
int tell(struct pair *pair, struct answer *answer);

/* In how long (ms) something in `set` is due: somebody has been silent too long, or is to be told of; -1: nothing is. */
int due_in(int set);
/* Do what is due; returns how many answers that gave: 0 or 1. */
int tell_due(int set, struct answer *answer);

struct epoll_event;
/* Wait as epoll_wait(2) does, or a little longer for more at once (`pace.c`). */
int wait_in_pace(int set, struct epoll_event *events, int most, int wait);
/* Take note that somebody came: ns, `now`. */
void came(int64_t when);

#endif
