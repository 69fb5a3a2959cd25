/*
 * Passing bytes on between pairs of sockets, and waiting for what happens to all of a gate's: `proxy/gate/splice.py` says
 * what is done, and does it alone where nobody could compile this. Nothing is decided here.
 *
 * Descriptors are the caller's: they are neither opened nor closed here, and stay in its epoll set for it to take out.
 * For one thread. Sources: epoll(7), recv(2), send(2), socket(7).
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#define PUBLIC __attribute__((visibility("default")))

enum { AT_ONCE = 256, BUFFER = 256 * 1024, SMALL = 4096, LAST_WORDS = 64 };

/* What happened to a descriptor of the caller's: epoll's events, or one of `enum over`. */
struct answer {
	int32_t fd;
	uint32_t events;
};

/* How a pair is over; none of these bits is one of epoll's. */
enum over { OPEN = 0, IN_PEACE = 1 << 16, NEAR_BROKE = 2 << 16, FAR_BROKE = 3 << 16, FAILED = 4 << 16 };

struct end {
	struct pair *pair;
	struct end *other;
	char *kept; /* what it was given and didn't take yet; `kept_from` is how much of it went since */
	size_t kept_from, kept_to;
	uint64_t taken; /* bytes */
	uint32_t waits_for;
	int fd;
	int silent; /* it has said all it will */
};

struct pair {
	struct end near, far;
	int64_t *backlog;  /* bytes that its sandbox's full sockets have waiting */
	int64_t most_kept; /* of those; beyond, they are read in small pieces */
	int set;           /* the epoll set that both are in */
	int is_told;       /* the caller has been told that it is over */
	enum over over;
};

/* Everybody's: whatever is read is written before anything else is read, and what a full socket didn't take is copied. */
static char buffer[BUFFER];
/* The ends by descriptor: what the kernel says of a descriptor that has changed hands meanwhile reaches no other end. */
static struct end **watching;
static size_t watching_size;

/* Of what this was compiled: whoever loads it compares. */
PUBLIC const char exeat_source[] = EXEAT_SOURCE;

/* -1: there is no memory. */
static int watch(struct end *end)
{
	size_t size = watching_size ? watching_size : 64;
	struct end **more;

	if (end->fd < 0)
		return -1;
	while ((size_t)end->fd >= size)
		size *= 2;
	if (size != watching_size) {
		more = realloc(watching, size * sizeof *watching);
		if (more == NULL)
			return -1;
		memset(more + watching_size, 0, (size - watching_size) * sizeof *watching);
		watching = more;
		watching_size = size;
	}
	watching[end->fd] = end;
	return 0;
}

static struct end *watcher(int fd)
{
	return fd >= 0 && (size_t)fd < watching_size ? watching[fd] : NULL;
}

static void unwatch(const struct end *end)
{
	if (watcher(end->fd) == end)
		watching[end->fd] = NULL;
}

static void finish(struct pair *pair, enum over how)
{
	if (pair->over == OPEN)
		pair->over = how;
}

/* For nothing means to be out of the set, or an error would be told over and over. */
static void wait_for(struct end *end, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.fd = end->fd};
	int how = !end->waits_for ? EPOLL_CTL_ADD : !events ? EPOLL_CTL_DEL : EPOLL_CTL_MOD;

	if (end->waits_for == events)
		return;
	end->waits_for = events;
	if (epoll_ctl(end->pair->set, how, end->fd, &event) < 0)
		finish(end->pair, FAILED);
}

static void forget_kept(struct end *end)
{
	*end->pair->backlog -= (int64_t)end->kept_to;
	free(end->kept);
	end->kept = NULL;
	end->kept_from = end->kept_to = 0;
}

/* Keep what doesn't go now; the other side then waits. */
static void keep(struct end *end, const char *data, size_t size)
{
	end->kept = malloc(size);
	if (end->kept == NULL) {
		finish(end->pair, FAILED);
		return;
	}
	memcpy(end->kept, data, size);
	end->kept_from = 0;
	end->kept_to = size;
	*end->pair->backlog += (int64_t)size;
	wait_for(end, end->waits_for | EPOLLOUT);
	wait_for(end->other, end->other->waits_for & ~(uint32_t)EPOLLIN);
}

/* Give the other side what this one said before it broke: it can be read still, and may say why. */
static void hear_out(struct end *end)
{
	struct end *other = end->other;

	for (int each = 0; each < LAST_WORDS && other->kept == NULL; each++) {
		ssize_t size = recv(end->fd, buffer, BUFFER, MSG_DONTWAIT), sent;

		if (size <= 0)
			return;
		sent = send(other->fd, buffer, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent > 0)
			other->taken += (uint64_t)sent;
		if (sent < size)
			return; /* what is full is reset now */
	}
}

static void broke(struct end *end)
{
	if (end->pair->over != OPEN)
		return;
	finish(end->pair, end == &end->pair->far ? FAR_BROKE : NEAR_BROKE);
	hear_out(end);
}

static void give_kept(struct end *end)
{
	ssize_t sent = send(end->fd, end->kept + end->kept_from, end->kept_to - end->kept_from, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (sent < 0) {
		if (errno != EAGAIN && errno != EINTR)
			broke(end);
		return;
	}
	end->taken += (uint64_t)sent;
	end->kept_from += (size_t)sent;
	if (end->kept_from == end->kept_to) {
		forget_kept(end);
		wait_for(end, end->waits_for & ~(uint32_t)EPOLLOUT);
		wait_for(end->other, end->other->waits_for | EPOLLIN);
	}
}

/* It has said all it will: carry that over; the second one is the end of both. */
static void fell_silent(struct end *end)
{
	end->silent = 1;
	if (end->other->silent) {
		finish(end->pair, IN_PEACE);
		return;
	}
	wait_for(end, end->waits_for & ~(uint32_t)EPOLLIN); /* nothing is kept for the other: or this would not be read */
	if (shutdown(end->other->fd, SHUT_WR) < 0)
		broke(end->other);
}

/* Give a side what the other one has said, and keep what it doesn't take. */
static void give(struct end *end, const char *said, size_t size)
{
	ssize_t sent = send(end->fd, said, size, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (sent < 0) {
		if (errno != EAGAIN && errno != EINTR) {
			broke(end);
			return;
		}
		sent = 0;
	}
	end->taken += (uint64_t)sent;
	if ((size_t)sent < size)
		keep(end, said + sent, size - (size_t)sent);
}

/* Give the other side what this one has said: once, so that a busy connection leaves the others their turn. */
static void pass(struct end *end, uint32_t events)
{
	ssize_t size;

	if (end->kept != NULL && events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
		give_kept(end);
	if (end->pair->over != OPEN || !(end->waits_for & EPOLLIN) || !(events & (EPOLLIN | EPOLLERR | EPOLLHUP)))
		return;
	size = recv(end->fd, buffer, *end->pair->backlog < end->pair->most_kept ? BUFFER : SMALL, MSG_DONTWAIT);
	if (size < 0) {
		if (errno != EAGAIN && errno != EINTR)
			broke(end);
		return;
	}
	if (size == 0) {
		fell_silent(end);
		return;
	}
	give(end->other, buffer, (size_t)size);
}

/* Tell of a pair that is over by its near descriptor, once; returns how many answers that gave. */
static int tell(struct pair *pair, struct answer *answer)
{
	if (pair->over == OPEN || pair->is_told)
		return 0;
	pair->is_told = 1;
	*answer = (struct answer){pair->near.fd, pair->over};
	return 1;
}

/* Do what is ready for those who are here, and note what isn't theirs. Returns how many answers there are. */
static int serve(int set, const struct epoll_event *events, int count, struct answer *answers)
{
	int told = 0;

	for (int each = 0; each < count; each++) {
		struct end *end = watcher(events[each].data.fd);

		if (end == NULL) {
			answers[told++] = (struct answer){events[each].data.fd, events[each].events};
		} else if (end->pair->set == set) {
			if (end->pair->over == OPEN)
				pass(end, events[each].events);
			told += tell(end->pair, &answers[told]);
		}
	}
	return told;
}

static int64_t now(void) /* ms */
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * INT64_C(1000) + time.tv_nsec / 1000000;
}

/* Wait up to `timeout` ms (-1: for ever), pass on what there is, and tell of the rest: other descriptors, and pairs that
 * are over, by their near one. Returns how many answers there are, at most `most`; -1 with errno, EINTR too. */
PUBLIC int exeat_serve(int set, int timeout, struct answer *answers, int most)
{
	struct epoll_event events[AT_ONCE];
	int64_t until = timeout > 0 ? now() + timeout : 0;

	for (;;) {
		int count = epoll_wait(set, events, most < AT_ONCE ? most : AT_ONCE, timeout);
		int told = count < 0 ? -1 : serve(set, events, count, answers);

		if (told || !timeout || !count)
			return told;
		if (timeout > 0 && (timeout = (int)(until - now())) < 0)
			timeout = 0; /* once more, so that what is ready is told however busy the pairs are */
	}
}

/* Know of nobody in a set that is about to be closed: its number and theirs may be another sandbox's in a moment. */
PUBLIC void exeat_leave(int set)
{
	for (size_t fd = 0; fd < watching_size; fd++)
		if (watching[fd] != NULL && watching[fd]->pair->set == set)
			watching[fd] = NULL;
}

/* Tell nobody of a pair any more. What stands at its descriptors may be another's meanwhile. */
static void leave(struct pair *pair)
{
	unwatch(&pair->near);
	unwatch(&pair->far);
}

/* Whoever had a descriptor before has closed it without a word. */
static void displace(int fd)
{
	struct end *end = watcher(fd);

	if (end != NULL)
		leave(end->pair);
}

/* Take two descriptors that are in `set`, waited on for EPOLLIN. Returns NULL where there is no memory. */
PUBLIC struct pair *exeat_adopt(int set, int near, int far, int64_t *backlog, int64_t most_kept)
{
	struct pair *pair = calloc(1, sizeof *pair);

	if (pair == NULL)
		return NULL;
	pair->near = (struct end){.pair = pair, .other = &pair->far, .waits_for = EPOLLIN, .fd = near};
	pair->far = (struct end){.pair = pair, .other = &pair->near, .waits_for = EPOLLIN, .fd = far};
	pair->backlog = backlog;
	pair->most_kept = most_kept;
	pair->set = set;
	displace(near);
	displace(far);
	if (near == far || watch(&pair->near) < 0 || watch(&pair->far) < 0) {
		leave(pair);
		free(pair);
		return NULL;
	}
	return pair;
}

/* Begin. What the near side has `said` was judged, and goes on as it was: it is read once more and thrown away, for until
 * then a program can change what it has sent (sendfile(2), splice(2)). Where nothing was judged, `size` is 0. Returns how
 * it is over, if it is. */
PUBLIC uint32_t exeat_start(struct pair *pair, const char *said, size_t size)
{
	for (size_t left = size; left && pair->over == OPEN;) {
		ssize_t gone = recv(pair->near.fd, buffer, left < BUFFER ? left : BUFFER, MSG_DONTWAIT | MSG_TRUNC);

		if (gone > 0)
			left -= (size_t)gone;
		else
			finish(pair, NEAR_BROKE); /* what else it has said nobody has judged: it isn't heard out */
	}
	if (!size)
		pass(&pair->near, EPOLLIN);
	else if (pair->over == OPEN)
		give(&pair->far, said, size);
	return pair->over;
}

/* How it is over; 0 while it isn't. What `exeat_serve` told may be of another that had the same descriptors. */
PUBLIC uint32_t exeat_over(const struct pair *pair)
{
	return pair->over;
}

/* How many bytes each side was given: the near one's are those that came down. */
PUBLIC void exeat_count(const struct pair *pair, uint64_t up_and_down[2])
{
	up_and_down[0] = pair->far.taken;
	up_and_down[1] = pair->near.taken;
}

/* Say how one side stands, for somebody else to go on: what it waits for, whether it is silent, what is kept for it. */
PUBLIC const char *exeat_side(const struct pair *pair, int far, uint32_t *waits_for, int *silent, size_t *size)
{
	const struct end *end = far ? &pair->far : &pair->near;

	*waits_for = end->waits_for;
	*silent = end->silent;
	*size = end->kept_to - end->kept_from;
	return *size ? end->kept + end->kept_from : NULL;
}

/* Let go of both; whether they are still in the set is as `exeat_side` says. */
PUBLIC void exeat_release(struct pair *pair)
{
	forget_kept(&pair->near);
	forget_kept(&pair->far);
	leave(pair);
	free(pair);
}
