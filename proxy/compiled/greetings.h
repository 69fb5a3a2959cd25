/*
 * What was said before, by where it was said: `proxy/greetings.py` has read it, and says which bytes of it are compared.
 */

#ifndef EXEAT_GREETINGS_H
#define EXEAT_GREETINGS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum { LONGEST_GREETING = 4096, /* bytes */ PLACES = 64 };

/* An address and a port, the latter as a number; the rest of an IPv4 address is zeros, and a mapped one (RFC 4291) is one. */
struct place {
	uint16_t family, port;
	uint8_t address[16];
};

struct usual;

/* `pieces` pairs of (from, to), and behind them the bytes that stand there. */
struct greeting {
	struct greeting *next;
	struct usual *usual; /* how those go on who greet so, freed with it; NULL: Python is asked */
	struct place place;
	uint32_t number, size, pieces;
	uint32_t spans[];
};

struct greetings {
	struct greeting *at[PLACES]; /* by a sum of the place */
};

/* -1: it is no place for this, for it has a zone. */
int place_of(struct place *place, const struct sockaddr_storage *where);
int is_known_place(const struct greetings *greetings, const struct place *place);
/* Find what `data` begins with; NULL: nothing that was said there before. */
const struct greeting *known_greeting(const struct greetings *greetings, const struct place *place, const char *data,
                                      size_t size);
/* Know one again, of `size` bytes: those at `spans` are in `bytes`, and no others are compared. -1: that makes no sense,
 * or there is no memory. */
int learn_greeting(struct greetings *greetings, const struct place *place, uint32_t number, uint32_t size,
                   const uint32_t *spans, uint32_t pieces, const char *bytes);
/* The one with a number; NULL: there is none. */
struct greeting *numbered_greeting(struct greetings *greetings, uint32_t number);
void forget_greetings(struct greetings *greetings);

#endif
