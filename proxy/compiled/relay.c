/*
 * Relays bytes between pairs of sockets, and waits for events of all sockets of a gate. `proxy/gate/splice.py` specifies
 * the behaviour, and implements it in Python where this file isn't compiled. This code makes no decisions.
 *
 * The caller owns the descriptors: this code neither opens nor closes them, and the caller removes them from its epoll set.
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

enum { AT_ONCE = 256, BUFFER = 256 * 1024, SMALL = 4096, MOST_LAST_READS = 64 };

/* Event of one of the caller's descriptors: epoll's events, or one of `enum outcome`. */
struct answer {
	int32_t fd;
	uint32_t events;
};

/* How a pair ended; none of these bits is one of epoll's. */
enum over { OPEN = 0, IN_ORDER = 1 << 16, CLIENT_BROKE = 2 << 16, SERVER_BROKE = 3 << 16, FAILED = 4 << 16 };

struct end {
	struct pair *pair;
	struct end *other;
	char *kept; /* bytes to send to it that its full socket didn't accept; `kept_from`: how many were sent since */
	size_t kept_from, kept_to;
	uint64_t sent_total; /* bytes sent to it */
	uint32_t waits_for;
	int fd;
	int silent; /* it has ended its side */
};

struct pair {
	struct end client, server;
	int64_t *backlog;  /* bytes buffered for full sockets of its sandbox */
	int64_t most_kept; /* of those; above, sockets are read in small pieces */
	int set;           /* the epoll set of both descriptors */
	int is_reported;       /* its end was reported to the caller */
	enum over over;
};

/* Shared by all pairs: data is written before anything else is read, and what a full socket doesn't accept is copied. */
static char buffer[BUFFER];
/* Ends by descriptor, so that an event of a descriptor that was reused reaches no wrong end. */
static struct end **watching;
static size_t watching_size;

/* Hash of the source, which the loader compares. */
PUBLIC const char exeat_source[] = EXEAT_SOURCE;

/* Register an end. -1: out of memory. */
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

/* Without events, the descriptor leaves the set, since epoll would report an error again and again. */
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

static void free_kept(struct end *end)
{
	*end->pair->backlog -= (int64_t)end->kept_to;
	free(end->kept);
	end->kept = NULL;
	end->kept_from = end->kept_to = 0;
}

/* Buffer bytes that can't be sent now, and stop reading from the other end. */
static void buffer_unsent(struct end *end, const char *data, size_t size)
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

/* Relay data that arrived before an end broke: it can still be read, and may say why. */
static void relay_last_data(struct end *end)
{
	struct end *other = end->other;

	for (int each = 0; each < MOST_LAST_READS && other->kept == NULL; each++) {
		ssize_t size = recv(end->fd, buffer, BUFFER, MSG_DONTWAIT), sent;

		if (size <= 0)
			return;
		sent = send(other->fd, buffer, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent > 0)
			other->sent_total += (uint64_t)sent;
		if (sent < size)
			return; /* what is full is reset now */
	}
}

static void end_broken(struct end *end)
{
	if (end->pair->over != OPEN)
		return;
	finish(end->pair, end == &end->pair->server ? SERVER_BROKE : CLIENT_BROKE);
	relay_last_data(end);
}

static void send_kept(struct end *end)
{
	ssize_t sent = send(end->fd, end->kept + end->kept_from, end->kept_to - end->kept_from, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (sent < 0) {
		if (errno != EAGAIN && errno != EINTR)
			end_broken(end);
		return;
	}
	end->sent_total += (uint64_t)sent;
	end->kept_from += (size_t)sent;
	if (end->kept_from == end->kept_to) {
		free_kept(end);
		wait_for(end, end->waits_for & ~(uint32_t)EPOLLOUT);
		wait_for(end->other, end->other->waits_for | EPOLLIN);
	}
}

/* An end has ended its side: pass that on. When both have, the pair ends. */
static void handle_end_of_data(struct end *end)
{
	end->silent = 1;
	if (end->other->silent) {
		finish(end->pair, IN_ORDER);
		return;
	}
	wait_for(end, end->waits_for & ~(uint32_t)EPOLLIN); /* nothing is buffered for the other: else this end would not be read */
	if (shutdown(end->other->fd, SHUT_WR) < 0)
		end_broken(end->other);
}

/* Send data to an end, and buffer what it doesn't accept. */
static void send_or_keep(struct end *end, const char *data, size_t size)
{
	ssize_t sent = send(end->fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (sent < 0) {
		if (errno != EAGAIN && errno != EINTR) {
			end_broken(end);
			return;
		}
		sent = 0;
	}
	end->sent_total += (uint64_t)sent;
	if ((size_t)sent < size)
		buffer_unsent(end, data + sent, size - (size_t)sent);
}

/* Relay from one end to the other, with one read, so that a busy connection leaves a turn to the others. */
static void relay(struct end *end, uint32_t events)
{
	ssize_t size;

	if (end->kept != NULL && events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
		send_kept(end);
	if (end->pair->over != OPEN || !(end->waits_for & EPOLLIN) || !(events & (EPOLLIN | EPOLLERR | EPOLLHUP)))
		return;
	size = recv(end->fd, buffer, *end->pair->backlog < end->pair->most_kept ? BUFFER : SMALL, MSG_DONTWAIT);
	if (size < 0) {
		if (errno != EAGAIN && errno != EINTR)
			end_broken(end);
		return;
	}
	if (size == 0) {
		handle_end_of_data(end);
		return;
	}
	send_or_keep(end->other, buffer, (size_t)size);
}

/* Report the end of a pair, once, by its client descriptor; returns the number of answers. */
static int report_end(struct pair *pair, struct answer *answer)
{
	if (pair->over == OPEN || pair->is_reported)
		return 0;
	pair->is_reported = 1;
	*answer = (struct answer){pair->client.fd, pair->over};
	return 1;
}

/* Relay for ready pairs of this set, and report events of other descriptors. Returns the number of answers. */
static int serve(int set, const struct epoll_event *events, int count, struct answer *answers)
{
	int count_of_answers = 0;

	for (int each = 0; each < count; each++) {
		struct end *end = watcher(events[each].data.fd);

		if (end == NULL) {
			answers[count_of_answers++] = (struct answer){events[each].data.fd, events[each].events};
		} else if (end->pair->set == set) {
			if (end->pair->over == OPEN)
				relay(end, events[each].events);
			count_of_answers += report_end(end->pair, &answers[count_of_answers]);
		}
	}
	return count_of_answers;
}

static int64_t now(void) /* ms */
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * INT64_C(1000) + time.tv_nsec / 1000000;
}

/* Wait up to `timeout` ms (-1: for ever), relay for ready pairs, and report the rest: events of other descriptors, and
 * ended pairs, by their client descriptor. Returns the number of answers, at most `most`; -1 with errno, also EINTR. */
PUBLIC int exeat_serve(int set, int timeout, struct answer *answers, int most)
{
	struct epoll_event events[AT_ONCE];
	int64_t until = timeout > 0 ? now() + timeout : 0;

	for (;;) {
		int count = epoll_wait(set, events, most < AT_ONCE ? most : AT_ONCE, timeout);
		int count_of_answers = count < 0 ? -1 : serve(set, events, count, answers);

		if (count_of_answers || !timeout || !count)
			return count_of_answers;
		if (timeout > 0 && (timeout = (int)(until - now())) < 0)
			timeout = 0; /* poll once more, so that events are reported however busy the pairs are */
	}
}

/* Forget all pairs of a set before it is closed: another sandbox may get its number and their descriptors. */
PUBLIC void exeat_leave(int set)
{
	for (size_t fd = 0; fd < watching_size; fd++)
		if (watching[fd] != NULL && watching[fd]->pair->set == set)
			watching[fd] = NULL;
}

/* Forget a pair, unless its descriptors belong to another pair by now. */
static void forget_pair(struct pair *pair)
{
	unwatch(&pair->client);
	unwatch(&pair->server);
}

/* Forget an earlier pair of a descriptor, which was closed without a release. */
static void forget_previous(int fd)
{
	struct end *end = watcher(fd);

	if (end != NULL)
		forget_pair(end->pair);
}

/* Start to relay between two descriptors that are in `set`, registered for EPOLLIN. Returns NULL if out of memory. */
PUBLIC struct pair *exeat_adopt(int set, int client, int server, int64_t *backlog, int64_t most_kept)
{
	struct pair *pair = calloc(1, sizeof *pair);

	if (pair == NULL)
		return NULL;
	pair->client = (struct end){.pair = pair, .other = &pair->server, .waits_for = EPOLLIN, .fd = client};
	pair->server = (struct end){.pair = pair, .other = &pair->client, .waits_for = EPOLLIN, .fd = server};
	pair->backlog = backlog;
	pair->most_kept = most_kept;
	pair->set = set;
	forget_previous(client);
	forget_previous(server);
	if (client == server || watch(&pair->client) < 0 || watch(&pair->server) < 0) {
		forget_pair(pair);
		free(pair);
		return NULL;
	}
	return pair;
}

/* Start the relay. The caller has inspected the client's first bytes, `data`, and these are sent as inspected. The
 * client's bytes are read again and discarded, since until then its program can change them (sendfile(2), splice(2)).
 * If nothing was inspected, `size` is 0. Returns the outcome, if the pair has ended. */
PUBLIC uint32_t exeat_start(struct pair *pair, const char *data, size_t size)
{
	for (size_t left = size; left && pair->over == OPEN;) {
		ssize_t discarded = recv(pair->client.fd, buffer, left < BUFFER ? left : BUFFER, MSG_DONTWAIT | MSG_TRUNC);

		if (discarded > 0)
			left -= (size_t)discarded;
		else
			finish(pair, CLIENT_BROKE); /* other data wasn't inspected, so it isn't relayed */
	}
	if (!size)
		relay(&pair->client, EPOLLIN);
	else if (pair->over == OPEN)
		send_or_keep(&pair->server, data, size);
	return pair->over;
}

/* Outcome of a pair; 0: it goes on. An answer of `exeat_serve` may be of an earlier pair with the same descriptors. */
PUBLIC uint32_t exeat_over(const struct pair *pair)
{
	return pair->over;
}

/* Bytes sent to the server (up) and to the client (down). */
PUBLIC void exeat_count(const struct pair *pair, uint64_t up_and_down[2])
{
	up_and_down[0] = pair->server.sent_total;
	up_and_down[1] = pair->client.sent_total;
}

/* Return the state of one end, so that the caller can continue: its events, whether it is silent, its buffered bytes. */
PUBLIC const char *exeat_side(const struct pair *pair, int server, uint32_t *waits_for, int *silent, size_t *size)
{
	const struct end *end = server ? &pair->server : &pair->client;

	*waits_for = end->waits_for;
	*silent = end->silent;
	*size = end->kept_to - end->kept_from;
	return *size ? end->kept + end->kept_from : NULL;
}

/* Release a pair; `exeat_side` says whether its descriptors are still in the set. */
PUBLIC void exeat_release(struct pair *pair)
{
	free_kept(&pair->client);
	free_kept(&pair->server);
	forget_pair(pair);
	free(pair);
}
