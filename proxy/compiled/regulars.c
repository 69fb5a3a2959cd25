/*
 * Connections whose likes have passed before: accepted, and known again by what they say. `proxy/regulars.py` says what
 * becomes of them, and without it Python does all that itself.
 *
 * Nothing is decided here, and no byte that a task wrote is understood: what it says is compared with what was read
 * before. Who says anything else, or says it somewhere else, is handed over as accepted, with nothing consumed.
 * Descriptors are C's from accept(2) until they are handed over or closed. For one thread. Sources: accept(2), recv(2).
 */

#define _GNU_SOURCE
#include "regulars.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum {
	AT_ONCE = 64, /* accepted before the others get their turn */
	FOR_ONE = 16, /* connections that are open for each that is accepted beyond the first */
};

static const int64_t SILENCE = 1000 * MS;
static const int64_t LATE = 10 * MS; /* what is over may be told so much later, with what comes next */

static struct guest *first_silent, *last_silent; /* in the order in which they came */
static struct gate *gates; /* of which something may be due */
static uint64_t last_id;

struct news *report(struct gate *gate, enum what what, const struct guest *guest)
{
	struct news *news = &gate->news[gate->counts->told++];

	*news = (struct news){
	    .id = guest->id, .opened = guest->opened, .what = what, .number = guest->number, .fd = guest->fd, .peer = guest->peer};
	if (guest->usual != NULL)
		memcpy(news->event, guest->event, EVENT_ID);
	return news;
}

int tell_news(struct gate *gate, struct answer *answer)
{
	if (!gate->counts->told || gate->turn == turn)
		return 0;
	gate->turn = turn;
	gate->late = 0;
	*answer = (struct answer){gate->listener, NEWS};
	return 1;
}

/* errno of accept(2) that is the trouble of the one connection that is gone already. */
static int its_own(int number)
{
	switch (number) {
	case ECONNABORTED: case EPROTO: case ENETDOWN: case EHOSTDOWN: case ENONET: case EHOSTUNREACH: case ENETUNREACH:
	case ENOPROTOOPT: case EOPNOTSUPP: case EINTR: case EPERM:
		return 1;
	}
	return 0;
}

static void be_silent(struct guest *guest)
{
	guest->before = last_silent;
	*(last_silent == NULL ? &first_silent : &last_silent->after) = guest;
	last_silent = guest;
	guest->is_silent = 1;
	++guest->gate->counts->silent;
}

static void be_heard(struct guest *guest)
{
	if (!guest->is_silent)
		return;
	*(guest->before == NULL ? &first_silent : &guest->before->after) = guest->after;
	*(guest->after == NULL ? &last_silent : &guest->after->before) = guest->before;
	guest->before = guest->after = NULL;
	guest->is_silent = 0;
	--guest->gate->counts->silent;
}

/* Know nothing of a connection any more; its descriptor stays open, and is in no set. */
static void let_go(struct guest *guest)
{
	be_heard(guest);
	if (guest->is_waited_on)
		epoll_ctl(guest->watched.set, EPOLL_CTL_DEL, guest->fd, NULL);
	unwatch(guest->fd, &guest->watched);
	forget_said(guest);
	guest->gate->here--;
	free(guest);
}

static void hand_over(struct guest *guest)
{
	report(guest->gate, ACCEPTED, guest);
	let_go(guest);
}

/* Keep somebody's first words. -1: there is no memory. */
static int keep_said(struct guest *guest, const char *said, size_t size)
{
	guest->said = malloc(size);
	if (guest->said == NULL)
		return -1;
	memcpy(guest->said, said, size);
	guest->said_size = size;
	return 0;
}

void forget_said(struct guest *guest)
{
	free(guest->said);
	guest->said = NULL;
	guest->said_size = 0;
}

/* Compare what somebody has said with what is known. Returns 0 where that is nothing so far. */
static int look(struct guest *guest)
{
	static char said[LONGEST_GREETING];
	ssize_t size = recv(guest->fd, said, sizeof said, MSG_PEEK | MSG_DONTWAIT);
	const struct greeting *known;

	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	known = size > 0 ? known_greeting(&guest->gate->greetings, &guest->place, said, (size_t)size) : NULL;
	if (known == NULL) {
		hand_over(guest);
		return 1;
	}
	be_heard(guest);
	guest->number = known->number;
	if (let_out_unasked(guest, known->usual, said, (size_t)size))
		return 1;
	if (keep_said(guest, said, (size_t)size) < 0)
		hand_over(guest);
	else
		report(guest->gate, GREETED, guest);
	return 1;
}

static struct guest *guest_of(struct watched *watched)
{
	return (struct guest *)((char *)watched - offsetof(struct guest, watched));
}

static int guest_ready(struct watched *watched, uint32_t events, struct answer *answer)
{
	struct guest *guest = guest_of(watched);
	struct gate *gate = guest->gate;

	(void)events;
	if (!guest->is_silent || gate->counts->told == MOST_NEWS || !look(guest))
		return 0; /* heard already, or its turn comes when there is room for the news */
	return tell_news(gate, answer);
}

static void receive(struct gate *gate, int fd, const struct sockaddr_storage *peer)
{
	struct guest new = {
	    .watched = {gate->watched.set, guest_ready}, .gate = gate, .id = ++last_id, .opened = now(), .fd = fd};
	struct sockaddr_storage where;
	socklen_t size = sizeof where;
	struct guest *guest = malloc(sizeof *guest);
	int is_known;

	came(new.opened);
	place_of(&new.peer, peer);
	if (guest == NULL || watch(fd, &guest->watched) < 0) { /* Python tells what becomes of it */
		free(guest);
		report(gate, ACCEPTED, &new);
		return;
	}
	*guest = new;
	gate->here++;
	is_known = getsockname(fd, (struct sockaddr *)&where, &size) == 0 && place_of(&guest->place, &where) == 0 &&
	           is_known_place(&gate->greetings, &guest->place);
	if (!is_known) {
		hand_over(guest);
	} else if (!look(guest)) {
		struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

		be_silent(guest);
		guest->is_waited_on = epoll_ctl(gate->watched.set, EPOLL_CTL_ADD, fd, &event) == 0;
		if (!guest->is_waited_on || gate->counts->silent > gate->most_silent)
			hand_over(guest);
	}
}

static int64_t unasked_at(const struct gate *gate)
{
	return gate->teller.counted == NULL ? 0 : gate->teller.counted->unasked;
}

static int listener_ready(struct watched *watched, uint32_t events, struct answer *answer)
{
	struct gate *gate = (struct gate *)watched;
	int64_t most = 1 + (gate->counts->silent + gate->counts->open + unasked_at(gate)) / FOR_ONE;

	for (int each = 0; each < most && each < AT_ONCE && gate->counts->told < MOST_NEWS; each++) {
		struct sockaddr_storage peer;
		socklen_t size = sizeof peer;
		int fd = accept4(gate->listener, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd < 0 && its_own(errno))
			continue;
		if (fd < 0 && errno == EAGAIN)
			break;
		if (fd < 0) { /* Python meets with the same, and tells of it */
			gate->turn = turn;
			gate->late = 0;
			*answer = (struct answer){gate->listener, events | (gate->counts->told ? NEWS : 0)};
			return 1;
		}
		receive(gate, fd, &peer);
	}
	return tell_news(gate, answer);
}

/* Whether an end is still to be told: Python may have heard of it with something else, and then nothing is ever due. */
static int is_late(const struct gate *gate)
{
	return gate->late && gate->counts->told;
}

int due_in(int set)
{
	struct guest *guest = first_silent;
	int64_t due = INT64_MAX;

	while (guest != NULL && guest->watched.set != set)
		guest = guest->after;
	if (guest != NULL)
		due = guest->opened + SILENCE;
	for (struct gate *gate = gates; gate != NULL; gate = gate->next)
		if (gate->watched.set == set && is_late(gate) && gate->late + LATE < due)
			due = gate->late + LATE;
	if (due == INT64_MAX)
		return -1;
	due -= now();
	return due < 0 ? 0 : (int)(due / MS) + 1;
}

int tell_due(int set, struct answer *answer)
{
	int64_t since = first_silent == NULL ? 0 : now() - SILENCE;
	struct guest *next;
	struct gate *gate;

	for (struct guest *guest = first_silent; guest != NULL && guest->opened <= since; guest = next) {
		next = guest->after;
		if (guest->watched.set != set || guest->gate->counts->told == MOST_NEWS)
			continue;
		guest->gate->late = since; /* long ago */
		hand_over(guest);
	}
	for (gate = gates; gate != NULL; gate = gate->next)
		if (gate->watched.set == set && is_late(gate) && gate->late + LATE <= now())
			return tell_news(gate, answer); /* another one's are still due */
	return 0;
}

struct guest *greeted(int fd, uint64_t id)
{
	struct watched *who = watcher(fd);
	struct guest *guest;

	if (who == NULL || who->ready != guest_ready)
		return NULL;
	guest = guest_of(who);
	return guest->id == id && !guest->is_silent ? guest : NULL;
}

/* Accept what comes to `listener`, which is watched in `set`, and wait for the first words of up to `most_silent`. With
 * 0, nothing waits here: whoever serves a set that isn't asked by itself. Returns NULL where there is no memory. */
PUBLIC struct gate *exeat_open(int set, int listener, struct counts *counts, int64_t most_silent, int64_t *backlog,
                               int64_t most_kept)
{
	struct gate *gate = calloc(1, sizeof *gate);

	if (gate == NULL || watch(listener, &gate->watched) < 0) {
		free(gate);
		return NULL;
	}
	gate->watched = (struct watched){set, listener_ready};
	gate->listener = listener;
	gate->counts = counts;
	gate->most_silent = most_silent;
	if (most_silent) { /* or nothing is ever due */
		gate->next = gates;
		gates = gate;
	}
	gate->backlog = backlog;
	gate->most_kept = most_kept;
	return gate;
}

/* Know a greeting again, as `learn_greeting` does. -1: it can't be, or there is no memory. */
PUBLIC int exeat_learn(struct gate *gate, const struct place *place, uint32_t number, uint32_t size,
                       const uint32_t *spans, uint32_t pieces, const char *bytes)
{
	return learn_greeting(&gate->greetings, place, number, size, spans, pieces, bytes);
}

/* Know none again, and hand over who is silent, or was let out unasked; returns whether some are left for whom there was
 * no room among the news. */
PUBLIC int exeat_forget(struct gate *gate)
{
	for (struct guest *guest = first_silent, *next; guest != NULL && gate->counts->told < MOST_NEWS; guest = next) {
		next = guest->after;
		if (guest->gate == gate)
			hand_over(guest);
	}
	if (reveal(gate, INT64_MAX))
		return 1; /* they are told as their greeting is */
	forget_greetings(&gate->greetings);
	return gate->counts->silent > 0;
}

/* Where the news are, the first one first. */
PUBLIC const struct news *exeat_news(const struct gate *gate)
{
	return gate->news;
}

/* Give up one who was GREETED: the descriptor is the caller's. -1: nobody has that id. */
PUBLIC int exeat_give(int fd, uint64_t id)
{
	struct guest *guest = greeted(fd, id);

	if (guest == NULL)
		return -1;
	let_go(guest);
	return 0;
}

/* Accept no more; the listener is the caller's. Whoever is here should have been handed over or taken before. */
PUBLIC void exeat_close(struct gate *gate)
{
	static struct counts nobodys;
	struct gate **link = &gates;

	exeat_forget(gate);
	while (*link != NULL && *link != gate)
		link = &(*link)->next;
	if (*link != NULL)
		*link = gate->next;
	unwatch(gate->listener, &gate->watched);
	gate->counts = &nobodys;
	gate->teller.counted = NULL;
	if (!gate->here)
		free(gate);
}
