/*
 * Connections that are let out without a word of Python's: it has vouched for all that greet so, a moment ago
 * (`proxy/unasked.py`), and said just now that nothing has changed since that this hangs on. They are told here, before
 * anything is dialled, and when they end by themselves. Whatever else becomes of them Python hears, with the id that
 * they were told under; and so it does of those that stay. For one thread.
 */

#include "regulars.h"

#include <stdlib.h>
#include <string.h>

void be_asked(struct guest *guest)
{
	struct gate *gate = guest->gate;

	if (guest->usual == NULL)
		return;
	*(guest->before == NULL ? &gate->unasked : &guest->before->after) = guest->after;
	if (guest->after != NULL)
		guest->after->before = guest->before;
	guest->before = guest->after = NULL;
	guest->usual = NULL;
	if (gate->teller.counted != NULL)
		gate->teller.counted->unasked--;
}

static void be_unasked(struct guest *guest, const struct usual *usual)
{
	struct gate *gate = guest->gate;

	guest->usual = usual;
	guest->after = gate->unasked;
	if (guest->after != NULL)
		guest->after->before = guest;
	gate->unasked = guest;
	gate->teller.counted->unasked++;
}

int let_out_unasked(struct guest *guest, const struct usual *usual, const char *said, size_t size)
{
	struct gate *gate = guest->gate;
	struct counted *counted = gate->teller.counted;
	int64_t heard = now();
	int number;

	if (usual == NULL || counted == NULL || !counted->in_force || counted->unasked >= counted->most ||
	    heard >= usual->vouched->until || tell_decided(&gate->teller, usual, guest->event) < 0)
		return 0;
	observe(&counted->peek, heard - guest->opened);
	observe(&counted->decision, now() - heard);
	be_unasked(guest, usual);
	number = dial(guest, (const struct sockaddr *)&usual->there, usual->there_size, said, size);
	if (number) {
		report(gate, GREETED, guest)->error = (uint32_t)number;
		be_asked(guest);
	} else if (guest->pair.over != OPEN) {
		end_guest(guest);
	}
	return 1;
}

int over_unasked(struct guest *guest)
{
	const struct pair *pair = &guest->pair;
	struct gate *gate = guest->gate;

	if (guest->usual == NULL || gate->teller.counted == NULL || (pair->over != IN_PEACE && pair->over != NEAR_BROKE) ||
	    tell_closed(&gate->teller, guest->usual, guest->event, pair->far.taken, pair->near.taken, now() - guest->opened) < 0)
		return -1;
	if (dialled(guest) >= 0)
		observe(&gate->teller.counted->dial, dialled(guest));
	be_asked(guest);
	return 0;
}

int reveal(struct gate *gate, int64_t before)
{
	for (struct guest *guest = gate->unasked, *next; guest != NULL; guest = next) {
		next = guest->after;
		if (guest->opened > before)
			continue;
		if (gate->counts->told == MOST_NEWS)
			return 1;
		report(gate, STAYS, guest);
		be_asked(guest);
	}
	return 0;
}

/* As `reveal`. */
PUBLIC int exeat_reveal(struct gate *gate, int64_t before)
{
	return reveal(gate, before);
}

/* Tell into the journal that has this tail; ids are greater than the last one's, of this process. */
PUBLIC void exeat_tell(struct gate *gate, struct tail *tail, int64_t *last_id, struct counted *counted,
                       const struct digest *sha256)
{
	gate->teller = (struct teller){.tail = tail, .last_id = last_id, .counted = counted, .sha256 = sha256};
}

/* Say how those go on who greet as it is known under a number. -1: nothing is, or there is no memory. */
PUBLIC int exeat_usual(struct gate *gate, uint32_t number, struct vouched *vouched, const struct sockaddr *there,
                       uint32_t there_size, const uint32_t sizes[4], const char *text)
{
	struct greeting *known = numbered_greeting(&gate->greetings, number);
	size_t size = (size_t)sizes[0] + sizes[1] + sizes[2] + sizes[3];
	struct usual *usual;

	if (known == NULL || known->usual != NULL || gate->teller.counted == NULL || size > LONGEST_FORM ||
	    there_size > sizeof usual->there)
		return -1;
	usual = calloc(1, sizeof *usual + size);
	if (usual == NULL)
		return -1;
	usual->vouched = vouched;
	memcpy(&usual->there, there, there_size);
	usual->there_size = there_size;
	memcpy(usual->sizes, sizes, sizeof usual->sizes);
	memcpy(usual->text, text, size);
	known->usual = usual;
	return 0;
}
