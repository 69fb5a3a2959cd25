/*
 * Lines of the journal, as `proxy/telemetry/form.py` and `journal/writing.py` make them: filled in, linked to the line
 * before (SHA-256), and written with one write(2) each. Whatever doesn't go is taken back, and Python meets with the
 * same: it begins segments, and says what a failure means. For one thread. Sources: RFC 9562, write(2), getrandom(2),
 * EVP_DigestInit(3).
 */

#define _GNU_SOURCE
#include "telling.h"

#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum { SECOND = 1000000000, MILLISECOND = 1000000, HASH = 64, /* digits */ OWN = 512 /* bytes of a line that are no form's */ };

static const char HEX[] = "0123456789abcdef";

/* The line that is being made: its size, or what it would be if there were room. */
struct line {
	size_t size;
	char text[LONGEST_FORM + OWN];
};

static void put(struct line *line, const char *text, size_t size)
{
	if (line->size + size <= sizeof line->text)
		memcpy(line->text + line->size, text, size);
	line->size += size;
}

static void put_text(struct line *line, const char *text)
{
	put(line, text, strlen(text));
}

/* A number, with at least `digits`: up to 20 of them. */
static void put_number(struct line *line, uint64_t number, int digits)
{
	char text[20];
	int at = sizeof text;

	do {
		text[--at] = (char)('0' + number % 10);
		number /= 10;
	} while (number || (int)sizeof text - at < digits);
	put(line, text + at, sizeof text - (size_t)at);
}

static void put_hex(struct line *line, const unsigned char *bytes, size_t size)
{
	for (size_t each = 0; each < size; each++) {
		char digits[] = {HEX[bytes[each] >> 4], HEX[bytes[each] & 15]};

		put(line, digits, sizeof digits);
	}
}

void observe(struct histogram *histogram, int64_t ns)
{
	int64_t each = 0;

	while (each < histogram->bounded && histogram->bounds[each] < ns)
		each++;
	histogram->counts[each]++;
	histogram->total += ns;
}

/* A UUIDv7 (RFC 9562 section 5.7) that is greater than the last one. -1: there is no noise. */
static int make_id(struct teller *teller, int64_t now, char id[EVENT_ID + 1])
{
	int64_t instant = now / MILLISECOND << 12 | (now % MILLISECOND << 12) / MILLISECOND;
	unsigned char bytes[16], *noise;

	if (teller->noise_left < 8) {
		if (getrandom(teller->noise, sizeof teller->noise, GRND_NONBLOCK) != sizeof teller->noise)
			return -1;
		teller->noise_left = sizeof teller->noise;
	}
	teller->noise_left -= 8;
	noise = teller->noise + teller->noise_left;
	if (instant <= *teller->last_id)
		instant = *teller->last_id + 1;
	*teller->last_id = instant;
	for (int each = 0; each < 6; each++)
		bytes[each] = (unsigned char)(instant >> (52 - 8 * each));
	bytes[6] = 0x70 | (instant >> 8 & 0x0f);
	bytes[7] = (unsigned char)instant;
	memcpy(bytes + 8, noise, 8);
	bytes[8] = 0x80 | (bytes[8] & 0x3f);
	for (int each = 0, at = 0; each < 16; each++) {
		if (each == 4 || each == 6 || each == 8 || each == 10)
			id[at++] = '-';
		id[at++] = HEX[bytes[each] >> 4];
		id[at++] = HEX[bytes[each] & 15];
	}
	id[EVENT_ID] = 0;
	return 0;
}

/* When a line is written, as RFC 3339 has it. */
static void put_time(struct line *line, int64_t now)
{
	static time_t then = -1;
	static char second[32];
	time_t seconds = now / SECOND;

	if (seconds != then) {
		struct tm tm;

		gmtime_r(&seconds, &tm);
		strftime(second, sizeof second, "%Y-%m-%dT%H:%M:%S", &tm);
		then = seconds;
	}
	put_text(line, second);
	put_text(line, ".");
	put_number(line, (uint64_t)(now % SECOND), 9);
	put_text(line, "Z");
}

/* Begin a line with its time and its id. -1: it can't be written now, for there is no segment for it, or no id. */
static int begin_line(struct teller *teller, struct line *line, char id[EVENT_ID + 1])
{
	const struct tail *tail = teller->tail;
	struct timespec time;
	int64_t now;

	clock_gettime(CLOCK_REALTIME, &time);
	now = time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
	if (now < tail->begins || now >= tail->ends || tail->length >= tail->most || !tail->lines)
		return -1;
	if (make_id(teller, now, id) < 0)
		return -1;
	line->size = 0;
	put_text(line, "{\"time\":\"");
	put_time(line, now);
	put_text(line, "\",\"id\":\"");
	put(line, id, EVENT_ID);
	put_text(line, "\"");
	return 0;
}

static int hash(const struct digest *sha256, const struct line *line, unsigned char digest[HASH / 2])
{
	return sha256->begin(sha256->context, NULL, NULL) == 1 &&
	       sha256->update(sha256->context, line->text, line->size) == 1 &&
	       sha256->finish(sha256->context, digest, NULL) == 1 ? 0 : -1;
}

/* Link a line to the one before it, and write it: all of it, or nothing. */
static int append(struct teller *teller, struct line *line)
{
	struct tail *tail = teller->tail;
	unsigned char digest[HASH / 2];
	size_t at;
	ssize_t wrote;

	put_text(line, ",\"prev\":\"");
	put(line, tail->head, HASH);
	put_text(line, "\"");
	if (line->size > sizeof line->text || hash(teller->sha256, line, digest) < 0)
		return -1;
	put_text(line, ",\"hash\":\"");
	at = line->size;
	put_hex(line, digest, sizeof digest);
	put_text(line, "\"}\n");
	if (line->size > sizeof line->text)
		return -1;
	wrote = write((int)tail->segment, line->text, line->size);
	if (wrote != (ssize_t)line->size) {
		/* What was taken of it must not stay in front of the next one; or that goes into another segment. A file
		 * system may have taken all of it and say that an earlier write failed: NFS does. */
		if (ftruncate((int)tail->segment, tail->length) < 0)
			tail->ends = 0;
		return -1;
	}
	memcpy(tail->head, line->text + at, HASH);
	tail->lines++;
	tail->length += wrote;
	tail->written += wrote;
	teller->counted->bytes += wrote;
	return 0;
}

int tell_decided(struct teller *teller, const struct usual *usual, char event[EVENT_ID])
{
	static struct line line;
	char id[EVENT_ID + 1];

	if (begin_line(teller, &line, id) < 0)
		return -1;
	put(&line, usual->text, usual->sizes[0]);
	if (append(teller, &line) < 0)
		return -1;
	memcpy(event, id, EVENT_ID);
	teller->counted->decided++;
	usual->vouched->decided++;
	return 0;
}

int tell_closed(struct teller *teller, const struct usual *usual, const char event[EVENT_ID], uint64_t up, uint64_t down,
                int64_t ns)
{
	static struct line line;
	const char *text = usual->text + usual->sizes[0];
	char id[EVENT_ID + 1];
	uint64_t micros = (uint64_t)(ns + 500) / 1000;

	if (begin_line(teller, &line, id) < 0)
		return -1;
	put(&line, text, usual->sizes[1]);
	put_text(&line, ",\"cause\":\"");
	put(&line, event, EVENT_ID);
	put_text(&line, "\"");
	put(&line, text + usual->sizes[1], usual->sizes[2]);
	put_text(&line, ",\"bytes\":{\"up\":");
	put_number(&line, up, 1);
	put_text(&line, ",\"down\":");
	put_number(&line, down, 1);
	put_text(&line, "},\"duration\":");
	put_number(&line, micros / 1000000, 1);
	put_text(&line, ".");
	put_number(&line, micros % 1000000, 6);
	put(&line, text + usual->sizes[1] + usual->sizes[2], usual->sizes[3]);
	if (append(teller, &line) < 0)
		return -1;
	teller->counted->closed++;
	teller->counted->up += (int64_t)up;
	teller->counted->down += (int64_t)down;
	observe(&teller->counted->connection, ns);
	return 0;
}
