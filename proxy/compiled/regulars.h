/*
 * What `regulars.c`, where connections are known again, `unasked.c`, where some are let out at once, and `dialled.c`, where
 * they go on, know of each other.
 */

#ifndef EXEAT_REGULARS_H
#define EXEAT_REGULARS_H

#include "greetings.h"
#include "relay.h"
#include "telling.h"

enum { MOST_NEWS = 512 };

enum what { ACCEPTED = 1, GREETED, OVER, STAYS };

/* What Python is told of one connection. `lane.py` reads it. */
struct news {
	uint64_t id;
	int64_t opened;  /* ns, `now` */
	int64_t dialled; /* ns that it took; -1: it was never connected */
	int64_t ended;   /* ns, `now` */
	uint64_t up, down;
	uint32_t what, number, over, error;
	int32_t fd;
	struct place peer;
	char event[EVENT_ID]; /* of who was let out unasked, and Python didn't know of; zeros */
};

/* Python's memory: who has news there reads them, and sets `told` to 0. */
struct counts {
	int64_t silent, told;
	int64_t open; /* connections that Python knows of; it writes that */
};

struct gate {
	struct watched watched;
	int listener;
	struct counts *counts;
	int64_t most_silent; /* who comes then is handed over at once */
	int64_t *backlog, most_kept;
	struct greetings greetings;
	struct teller teller;
	struct guest *unasked;
	uint32_t here;
	uint64_t turn; /* in which there was an answer for the news */
	int64_t late;  /* ns, `now`: since when somebody's end is to be told; 0: nobody's is */
	struct gate *next;
	struct news news[MOST_NEWS];
};

/* The pair comes first: whoever takes that over frees all of it. */
struct guest {
	struct pair pair;
	struct watched watched;
	struct gate *gate;
	struct guest *before, *after; /* of those who are silent, or who were let out unasked */
	const struct usual *usual;    /* of the latter */
	struct place place, peer;
	uint64_t id;
	int64_t opened, dialling; /* ns, `now`: since when */
	uint32_t number; /* of the greeting */
	int fd;
	int is_silent, is_waited_on;
	char *said; /* first, by which it was known, while Python is asked; NULL: nothing that is kept */
	size_t said_size;
	char event[EVENT_ID];
};

_Static_assert(sizeof(struct news) == 128, "lane.py reads it");

/* Take note of something for Python; there must be room for it. */
struct news *report(struct gate *gate, enum what what, const struct guest *guest);
/* One answer a turn for all that is new; returns how many that gave. */
int tell_news(struct gate *gate, struct answer *answer);
/* Dial, and pass on, first what it has `said`. Returns 0 or errno; then nothing has happened. */
int dial(struct guest *guest, const struct sockaddr *where, socklen_t size, const char *said, size_t said_size);
/* Close one that is over, and tell it or report it. Returns 0 where there is no room for the news. */
int end_guest(struct guest *guest);
/* Keep its first words no longer. */
void forget_said(struct guest *guest);
/* How long it took to dial (ns); -1: it isn't connected. */
int64_t dialled(const struct guest *guest);
/* Let one out that is vouched for, and has `said` so. Returns 0 where it is to be asked for. */
int let_out_unasked(struct guest *guest, const struct usual *usual, const char *said, size_t size);
/* Have Python know of one that was let out unasked, or is over; of others nothing happens. */
void be_asked(struct guest *guest);
/* Tell that one is over which was let out unasked, and ended by itself. -1: Python has to. */
int over_unasked(struct guest *guest);
/* Report those who were let out unasked and have been here since `before` (ns, `now`); they are as any others then.
 * Returns whether there was no room for some. */
int reveal(struct gate *gate, int64_t before);
/* Whoever was GREETED and has this id; NULL: nobody has. */
struct guest *greeted(int fd, uint64_t id);

#endif
