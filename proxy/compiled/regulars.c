/*
 * Connections whose likes have passed before: accepted, known again by what they say, and dialled, with Python asked in
 * between. `proxy/regulars.py` says what is done, and without it Python does all that itself.
 *
 * Nothing is decided here, and no byte that a task wrote is understood: what it says is compared with what was read
 * before. Who says anything else, or says it somewhere else, is handed over as accepted, with nothing consumed. Where to
 * dial, Python says each time. Descriptors are this file's from accept(2) until they are handed over or closed here.
 * For one thread. Sources: accept(2), connect(2), recv(2), socket(7), tcp(7).
 */

#define _GNU_SOURCE
#include "greetings.h"
#include "relay.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
	MOST_NEWS = 512,
	AT_ONCE = 64,      /* accepted before the others get their turn */
	FOR_ONE = 16,      /* connections that are open for each that is accepted beyond the first */
};

static const int64_t SILENCE = 1000 * MS;
static const int64_t LATE = 10 * MS; /* what is over may be told so much later, with what comes next */

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

static struct guest *first_silent, *last_silent; /* in the order in which they came */
static struct gate *gates;
static uint64_t last_id;

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

static struct news *report(struct gate *gate, enum what what, const struct guest *guest)
{
	struct news *news = &gate->news[gate->counts->told++];

	*news = (struct news){
	    .id = guest->id, .opened = guest->opened, .what = what, .fd = guest->fd, .peer = guest->peer};
	return news;
}

/* One answer a turn for all that is new. */
static int tell_news(struct gate *gate, struct answer *answer)
{
	if (!gate->counts->told || gate->turn == turn)
		return 0;
	gate->turn = turn;
	gate->late = 0;
	*answer = (struct answer){gate->listener, NEWS};
	return 1;
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
	guest->gate->here--;
	free(guest);
}

static void hand_over(struct guest *guest)
{
	report(guest->gate, ACCEPTED, guest);
	let_go(guest);
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
	report(guest->gate, GREETED, guest)->number = known->number;
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

/* Take note of who was accepted; returns -1 where there is no memory for it. */
static int receive(struct gate *gate, int fd, const struct sockaddr_storage *peer)
{
	struct sockaddr_storage where;
	socklen_t size = sizeof where;
	struct guest *guest = calloc(1, sizeof *guest);
	int is_known;

	if (guest == NULL || watch(fd, &guest->watched) < 0) {
		free(guest);
		return -1;
	}
	guest->watched = (struct watched){gate->watched.set, guest_ready};
	guest->gate = gate;
	guest->id = ++last_id;
	guest->fd = fd;
	guest->opened = now();
	gate->here++;
	place_of(&guest->peer, peer);
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
	return 0;
}

static int listener_ready(struct watched *watched, uint32_t events, struct answer *answer)
{
	struct gate *gate = (struct gate *)watched;
	int64_t most = 1 + (gate->counts->silent + gate->counts->open) / FOR_ONE;

	for (int each = 0; each < most && each < AT_ONCE && gate->counts->told < MOST_NEWS; each++) {
		struct sockaddr_storage peer;
		socklen_t size = sizeof peer;
		int fd = accept4(gate->listener, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd < 0 && its_own(errno))
			continue;
		if (fd < 0 && errno == EAGAIN)
			break;
		if (fd < 0 || receive(gate, fd, &peer) < 0) { /* Python meets with the same, and tells of it */
			if (fd >= 0)
				close(fd);
			gate->turn = turn;
			gate->late = 0;
			*answer = (struct answer){gate->listener, events | (gate->counts->told ? NEWS : 0)};
			return 1;
		}
	}
	return tell_news(gate, answer);
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
		if (gate->watched.set == set && gate->late && gate->late + LATE < due)
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
		if (gate->watched.set == set && gate->late && gate->late + LATE <= now())
			return tell_news(gate, answer); /* another one's are still due */
	return 0;
}

static struct guest *found(int fd, uint64_t id)
{
	struct watched *who = watcher(fd);
	struct guest *guest;

	if (who == NULL || who->ready != guest_ready)
		return NULL;
	guest = guest_of(who);
	return guest->id == id ? guest : NULL;
}

static int64_t dialled(const struct guest *guest)
{
	return guest->pair.far.since ? guest->pair.far.since - guest->dialling : -1;
}

/* A connection that was passed on is over: close it, and report. */
static int pair_over(struct pair *pair, struct answer *answer)
{
	struct guest *guest = (struct guest *)pair;
	struct gate *gate = guest->gate;
	struct linger linger = {.l_onoff = pair->over != IN_PEACE};
	int ends[] = {pair->near.fd, pair->far.fd};
	struct news *news;

	if (gate->counts->told == MOST_NEWS)
		return 0; /* both stay as they are: the kernel says so again */
	news = report(gate, OVER, guest);
	news->over = pair->over;
	news->error = (uint32_t)pair->error;
	news->up = pair->far.taken;
	news->down = pair->near.taken;
	news->dialled = dialled(guest);
	news->ended = now();
	part(pair);
	for (int each = 0; each < 2; each++) {
		setsockopt(ends[each], SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
		close(ends[each]);
	}
	gate->here--;
	free(guest);
	if (!gate->most_silent || gate->counts->told > MOST_NEWS / 2)
		return tell_news(gate, answer);
	if (!gate->late)
		gate->late = news->ended;
	return 0;
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
	gate->next = gates;
	gates = gate;
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

/* Know none again, and hand over who is silent; returns whether some are left for whom there was no room among the news. */
PUBLIC int exeat_forget(struct gate *gate)
{
	forget_greetings(&gate->greetings);
	for (struct guest *guest = first_silent, *next; guest != NULL && gate->counts->told < MOST_NEWS; guest = next) {
		next = guest->after;
		if (guest->gate == gate)
			hand_over(guest);
	}
	return gate->counts->silent > 0;
}

/* Where the news are, the first one first. */
PUBLIC const struct news *exeat_news(const struct gate *gate)
{
	return gate->news;
}

/* Dial for one who was GREETED, and pass on. Returns 0 or errno; then nothing has happened. */
PUBLIC int exeat_dial(int fd, uint64_t id, const struct sockaddr *where, uint32_t size)
{
	static const struct linger cut = {.l_onoff = 1}; /* a reset, should this process end without a word */
	struct guest *guest = found(fd, id);
	struct answer answer;
	struct pair *pair;
	int far, one = 1, number;

	if (guest == NULL || guest->is_silent)
		return ESTALE;
	pair = &guest->pair;
	far = socket(where->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (far < 0)
		return errno;
	guest->dialling = now();
	if (setsockopt(far, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) < 0 ||
	    setsockopt(far, SOL_SOCKET, SO_OOBINLINE, &one, sizeof one) < 0 ||
	    setsockopt(far, SOL_SOCKET, SO_LINGER, &cut, sizeof cut) < 0 ||
	    (connect(far, where, size) < 0 && errno != EINPROGRESS)) {
		number = errno;
		close(far);
		return number;
	}
	if (join(pair, guest->watched.set, fd, far) < 0) {
		watch(fd, &guest->watched);
		close(far);
		return ENOMEM;
	}
	pair->tell = pair_over;
	pair->backlog = guest->gate->backlog;
	pair->most_kept = guest->gate->most_kept;
	pair->near.waits_for = guest->is_waited_on ? EPOLLIN : 0;
	wait_for(&pair->near, EPOLLIN);
	wait_for(&pair->far, EPOLLIN);
	begin(pair); /* where it isn't connected yet, it is as if it were full */
	if (pair->over != OPEN)
		pair_over(pair, &answer); /* Python asks for news when it has done what it has of them */
	return 0;
}

/* Give up one who was GREETED: the descriptor is the caller's. -1: nobody has that id. */
PUBLIC int exeat_give(int fd, uint64_t id)
{
	struct guest *guest = found(fd, id);

	if (guest == NULL || guest->is_silent)
		return -1;
	let_go(guest);
	return 0;
}

static struct guest *passed_on(int fd, uint64_t id)
{
	struct pair *pair = pair_of(fd);

	return pair != NULL && pair->tell == pair_over && ((struct guest *)pair)->id == id ? (struct guest *)pair : NULL;
}

/* How long it took to dial (ns); -1: it is still under way, or nobody has that id. */
PUBLIC int64_t exeat_dialled(int fd, uint64_t id)
{
	const struct guest *guest = passed_on(fd, id);

	return guest == NULL ? -1 : dialled(guest);
}

/* Give up one that is passed on: both descriptors are the caller's, and so is the pair, as `exeat_adopt` would return
 * it. NULL: nobody has that id, or the news of its end are under way. */
PUBLIC struct pair *exeat_take(int fd, uint64_t id, int64_t far_and_dialled[2])
{
	struct guest *guest = passed_on(fd, id);

	if (guest == NULL)
		return NULL;
	guest->pair.tell = tell;
	guest->gate->here--;
	far_and_dialled[0] = guest->pair.far.fd;
	far_and_dialled[1] = dialled(guest);
	return &guest->pair;
}

/* Accept no more; the listener is the caller's. Whoever is here should have been handed over or taken before. */
PUBLIC void exeat_close(struct gate *gate)
{
	static struct counts nobodys;
	struct gate **link = &gates;

	exeat_forget(gate);
	while (*link != gate)
		link = &(*link)->next;
	*link = gate->next;
	unwatch(gate->listener, &gate->watched);
	gate->counts = &nobodys;
	if (!gate->here)
		free(gate);
}
