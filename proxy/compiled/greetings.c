/* Greetings that were read before, compared byte by byte; see greetings.h. Pure but for what it remembers. */

#include "greetings.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

int place_of(struct place *place, const struct sockaddr_storage *where)
{
	const struct sockaddr_in *four = (const struct sockaddr_in *)where;
	const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)where;

	memset(place, 0, sizeof *place);
	place->family = where->ss_family;
	if (where->ss_family == AF_INET) {
		place->port = ntohs(four->sin_port);
		memcpy(place->address, &four->sin_addr, sizeof four->sin_addr);
		return 0;
	}
	place->port = ntohs(six->sin6_port);
	if (where->ss_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&six->sin6_addr)) {
		place->family = AF_INET;
		memcpy(place->address, &six->sin6_addr.s6_addr[12], 4);
		return 0;
	}
	memcpy(place->address, &six->sin6_addr, sizeof six->sin6_addr);
	return where->ss_family == AF_INET6 && !six->sin6_scope_id ? 0 : -1; /* with a zone it is nowhere */
}

static size_t sum_of(const struct place *place)
{
	uint32_t sum = place->port;

	for (size_t each = 0; each < sizeof place->address; each++)
		sum = sum * 31 + place->address[each];
	return sum % PLACES;
}

/* The first greeting of a place at or behind `known`. */
static struct greeting *next_of(struct greeting *known, const struct place *place)
{
	while (known != NULL && memcmp(&known->place, place, sizeof *place) != 0)
		known = known->next;
	return known;
}

/* Whether `data` begins with what was said before, but for what is new every time. */
static int says(const struct greeting *known, const char *data, size_t size)
{
	const char *bytes = (const char *)&known->spans[2 * known->pieces];

	if (size < known->size)
		return 0;
	for (uint32_t each = 0; each < known->pieces; each++) {
		uint32_t from = known->spans[2 * each], length = known->spans[2 * each + 1] - from;

		if (memcmp(data + from, bytes, length) != 0)
			return 0;
		bytes += length;
	}
	return 1;
}

int is_known_place(const struct greetings *greetings, const struct place *place)
{
	return next_of(greetings->at[sum_of(place)], place) != NULL;
}

const struct greeting *known_greeting(const struct greetings *greetings, const struct place *place, const char *data,
                                      size_t size)
{
	struct greeting *known = next_of(greetings->at[sum_of(place)], place);

	while (known != NULL && !says(known, data, size))
		known = next_of(known->next, place);
	return known;
}

int learn_greeting(struct greetings *greetings, const struct place *place, uint32_t number, uint32_t size,
                   const uint32_t *spans, uint32_t pieces, const char *bytes)
{
	struct greeting **first = &greetings->at[sum_of(place)], *new;
	size_t length = 0;

	for (uint32_t each = 0; each < pieces; each++) {
		if (spans[2 * each] > spans[2 * each + 1] || spans[2 * each + 1] > size)
			return -1;
		length += spans[2 * each + 1] - spans[2 * each];
	}
	if (size > LONGEST_GREETING || length > size)
		return -1;
	new = malloc(sizeof *new + 2 * pieces * sizeof *spans + length);
	if (new == NULL)
		return -1;
	*new = (struct greeting){.next = *first, .place = *place, .number = number, .size = size, .pieces = pieces};
	memcpy(new->spans, spans, 2 * pieces * sizeof *spans);
	memcpy(&new->spans[2 * pieces], bytes, length);
	*first = new;
	return 0;
}

struct greeting *numbered_greeting(struct greetings *greetings, uint32_t number)
{
	for (size_t each = 0; each < PLACES; each++)
		for (struct greeting *known = greetings->at[each]; known != NULL; known = known->next)
			if (known->number == number)
				return known;
	return NULL;
}

void forget_greetings(struct greetings *greetings)
{
	for (size_t each = 0; each < PLACES; each++) {
		while (greetings->at[each] != NULL) {
			struct greeting *next = greetings->at[each]->next;

			free(greetings->at[each]->usual);
			free(greetings->at[each]);
			greetings->at[each] = next;
		}
	}
}
