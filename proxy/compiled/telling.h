/*
 * Telling of connections that are alike: the lines that `proxy/telemetry/alike.py` would write, into the same segment of
 * the same journal, and the same counts. What is counted here lies in Python's memory, which takes it over.
 */

#ifndef EXEAT_TELLING_H
#define EXEAT_TELLING_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum { EVENT_ID = 36, /* characters */ LONGEST_FORM = 32 * 1024, /* bytes */ AT_ONCE_NOISE = 640 /* bytes */ };

/* Where the journal's next line goes: `journal/tail.py` has the same. Times are in ns since 1970. */
struct tail {
	int64_t segment; /* descriptor; -1: none is open */
	int64_t begins, ends, length, most, lines, written;
	char head[64];
};

/* Observations of ns between `bounds`, the last count above all of them. */
struct histogram {
	const int64_t *bounds;
	int64_t *counts;
	int64_t bounded, total;
};

/* Python's memory, one a gate: `unasked.py` writes the first two, and takes over the others. */
struct counted {
	int64_t in_force; /* whether what was vouched for may be let out: nothing has changed that it hangs on */
	int64_t most;     /* connections that may be here unasked */
	int64_t unasked;  /* that are */
	int64_t decided, closed, bytes, up, down;
	struct histogram peek, decision, dial, connection;
};

/* What Python vouches for, in its memory, one for each greeting. */
struct vouched {
	int64_t until; /* ns, `now` */
	int64_t decided;
};

/* What connections that greet so have in common: where they lead, and how they are told. */
struct usual {
	struct vouched *vouched;
	struct sockaddr_storage there;
	uint32_t there_size;
	uint32_t sizes[4]; /* of the texts: behind the id of a decision; of an end's, before the cause, the bytes, the rest */
	char text[];
};

/* SHA-256 as OpenSSL has it: EVP_DigestInit_ex(3) and so on, and a context that has been begun with it before. */
struct digest {
	void *context;
	int (*begin)(void *context, const void *type, void *engine);
	int (*update)(void *context, const void *data, size_t size);
	int (*finish)(void *context, unsigned char *digest, unsigned int *size);
};

/* How a gate tells. */
struct teller {
	struct tail *tail;
	int64_t *last_id; /* milliseconds and 12 bits of their fraction: `ids.py` has the same */
	struct counted *counted;
	const struct digest *sha256;
	size_t noise_left;
	unsigned char noise[AT_ONCE_NOISE];
};

void observe(struct histogram *histogram, int64_t ns);
/* Write that one was let out; its id is put into `event`. -1: not a byte of it is in the journal. */
int tell_decided(struct teller *teller, const struct usual *usual, char event[EVENT_ID]);
/* Write that it is over after `ns`. -1 as above. */
int tell_closed(struct teller *teller, const struct usual *usual, const char event[EVENT_ID], uint64_t up, uint64_t down,
                int64_t ns);

#endif
