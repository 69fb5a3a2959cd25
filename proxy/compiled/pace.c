/*
 * How often the gate looks. Where connections come closely one after the other, and the host has more to run than it
 * has processors, what happens is left to gather for a moment, as a network card holds back its interrupts (ethtool(8),
 * rx-usecs). Whoever wakes a process that sleeps interrupts another processor for it, seven times a connection; that
 * makes nobody quicker where the one who waits for an answer waits for a processor, too, and costs all who do. Where
 * there is a processor to spare, or connections come one at a time, nothing is held back.
 *
 * For one thread. Sources: epoll_wait(2), nanosleep(2), proc_loadavg(5).
 */

#define _GNU_SOURCE
#include "relay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum {
	FEW = 4,    /* connections */
	ALL = 256,  /* looks at the host's load, of which so many were at one that is too much */
	WEIGHT = 8, /* of those before, against the last one */
	SPARE = 1,  /* may wait for a processor: whoever has just been woken does */
};

static const int64_t CLOSELY = 20 * MS, LOOK = 10 * MS, FORGET = 1000 * MS;
static const struct timespec REST = {.tv_nsec = 900000}; /* and what the kernel adds: prctl(2), PR_SET_TIMERSLACK */

static int load = -1; /* a descriptor of /proc/loadavg */
static int processors;
static int64_t times[FEW]; /* ns, `now`: when the last few came, in a ring */
static int64_t looked;     /* ns, `now` */
static uint64_t number, rested;
static int pressed; /* of ALL */

int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

void came(int64_t when)
{
	times[number++ % FEW] = when;
}

/* How many have a processor, or wait for one; 0 where nobody can say. */
static int running(void)
{
	char text[64];
	ssize_t size = load < 0 ? -1 : pread(load, text, sizeof text - 1, 0);
	const char *at = text;

	if (size <= 0)
		return 0;
	text[size] = 0;
	for (int word = 0; word < 3; word++) {
		if ((at = strchr(at, ' ')) == NULL)
			return 0;
		at++;
	}
	return atoi(at);
}

static int is_crowded(int64_t time)
{
	if (number < FEW || time - times[number % FEW] > CLOSELY)
		return 0;
	if (time - looked > FORGET)
		pressed = 0;
	if (time - looked > LOOK) {
		looked = time;
		pressed += ((running() > processors + SPARE ? ALL : 0) - pressed) / WEIGHT;
	}
	return pressed > ALL / 2;
}

int wait_in_pace(int set, struct epoll_event *events, int most, int wait)
{
	if (wait && is_crowded(now())) {
		int count = epoll_wait(set, events, most, 0);

		if (count)
			return count;
		rested++;
		if (nanosleep(&REST, NULL) < 0 && errno == EINTR)
			return -1;
	}
	return epoll_wait(set, events, most, wait);
}

/* Look at the host's load by a descriptor of /proc/loadavg, which stays the caller's; -1: hold nothing back. */
PUBLIC void exeat_pace(int loadavg, int of)
{
	load = loadavg;
	processors = of;
	pressed = 0;
}

/* How often it was left to gather. */
PUBLIC uint64_t exeat_rested(void)
{
	return rested;
}
