/*
 * How a connection that was known again goes on: dialled to where Python says, passed on (`relay.c`), and closed when it
 * is over, which is told; or taken over by Python before. For one thread. Sources: connect(2), socket(7), tcp(7).
 */

#define _GNU_SOURCE
#include "regulars.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

int64_t dialled(const struct guest *guest)
{
	return guest->pair.far.since ? guest->pair.far.since - guest->dialling : -1;
}

static void report_over(struct guest *guest)
{
	const struct pair *pair = &guest->pair;
	struct news *news = report(guest->gate, OVER, guest);

	news->over = pair->over;
	news->error = (uint32_t)pair->error;
	news->up = pair->far.taken;
	news->down = pair->near.taken;
	news->dialled = dialled(guest);
	news->ended = now();
}

int end_guest(struct guest *guest)
{
	struct pair *pair = &guest->pair;
	struct linger linger = {.l_onoff = pair->over != IN_PEACE};
	int ends[] = {pair->near.fd, pair->far.fd};

	if (over_unasked(guest) < 0) {
		if (guest->gate->counts->told == MOST_NEWS)
			return 0; /* both stay as they are: the kernel says so again */
		report_over(guest);
		be_asked(guest);
	}
	part(pair);
	for (int each = 0; each < 2; each++) {
		setsockopt(ends[each], SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
		close(ends[each]);
	}
	guest->gate->here--;
	free(guest);
	return 1;
}

static int pair_over(struct pair *pair, struct answer *answer)
{
	struct gate *gate = ((struct guest *)pair)->gate;
	int64_t told = gate->counts->told;

	if (!end_guest((struct guest *)pair) || gate->counts->told == told)
		return 0;
	if (!gate->most_silent || gate->counts->told > MOST_NEWS / 2)
		return tell_news(gate, answer);
	if (!gate->late || gate->counts->told == 1)
		gate->late = now();
	return 0;
}

int dial(struct guest *guest, const struct sockaddr *where, socklen_t size, const char *said, size_t said_size)
{
	static const struct linger cut = {.l_onoff = 1}; /* a reset, should this process end without a word */
	struct pair *pair = &guest->pair;
	int far, one = 1, number;

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
	if (join(pair, guest->watched.set, guest->fd, far) < 0) {
		watch(guest->fd, &guest->watched);
		close(far);
		return ENOMEM;
	}
	pair->tell = pair_over;
	pair->backlog = guest->gate->backlog;
	pair->most_kept = guest->gate->most_kept;
	pair->near.waits_for = guest->is_waited_on ? EPOLLIN : 0;
	wait_for(&pair->near, EPOLLIN);
	wait_for(&pair->far, EPOLLIN);
	begin(pair, said, said_size); /* where it isn't connected yet, it is as if it were full */
	forget_said(guest);
	return 0;
}

/* Dial for one who was GREETED, and pass on. Returns 0 or errno; then nothing has happened. */
PUBLIC int exeat_dial(int fd, uint64_t id, const struct sockaddr *where, uint32_t size)
{
	struct guest *guest = greeted(fd, id);
	int number;

	if (guest == NULL)
		return ESTALE;
	number = dial(guest, where, size, guest->said, guest->said_size);
	if (!number && guest->pair.over != OPEN)
		end_guest(guest); /* Python asks for news when it has done what it has of them */
	return number;
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
