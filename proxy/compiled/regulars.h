/* What `regulars.c`, where connections are known again, and `dialled.c`, where they go on, know of each other. */

#ifndef EXEAT_REGULARS_H
#define EXEAT_REGULARS_H

#include "greetings.h"
#include "relay.h"

enum { MOST_NEWS = 512 };

enum what { ACCEPTED = 1, GREETED, OVER };

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
	struct guest *before, *after; /* of those who are silent */
	struct place place, peer;
	uint64_t id;
	int64_t opened, dialling; /* ns, `now`: since when */
	int fd;
	int is_silent, is_waited_on;
};

_Static_assert(sizeof(struct news) == 88, "lane.py reads it");

/* Take note of something for Python; there must be room for it. */
struct news *report(struct gate *gate, enum what what, const struct guest *guest);
/* One answer a turn for all that is new; returns how many that gave. */
int tell_news(struct gate *gate, struct answer *answer);
/* Whoever was GREETED and has this id; NULL: nobody has. */
struct guest *greeted(int fd, uint64_t id);

#endif
