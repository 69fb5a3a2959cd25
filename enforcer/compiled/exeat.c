/*
 * `exeat`, where it is compiled: `exeat run` under a service, without an interpreter. For everything else, and where
 * there is no service for it, this executes the Python program, which has the same words. What is done here is
 * described, and done where nobody could compile this, by `enforcer/service/client.py` and `calls.py`.
 *
 * It has its caller's rights and no others, and decides nothing but who does the work. Until the request is sent,
 * whatever goes wrong leaves it to Python; from then on the task may have begun, and is not begun again.
 */

#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LOST = 125, LIMITS = 16, SIGNALS = 64, LARGEST_PACKET = 1 << 16 };

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* asm-generic/socket.h */
#endif

/* What a caller's signals are to its task (`calls.FORWARDED`), and a terminal's new size. */
static const int watched[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGCONT, SIGWINCH};

/* Of what this was compiled: `exeat doctor` compares. */
__attribute__((used)) static const char source[] = "exeat.c " EXEAT_SOURCE;

/* How the Python program is executed, without its words: `build.program`. */
static char *const program[] = {EXEAT_PROGRAM};
enum { PROGRAM = sizeof program / sizeof *program };

/* Be the Python program, with the same words; `alone`: with one more, so that it asks no service. */
static _Noreturn void be_python(char **words, int alone)
{
	size_t count = 0, at = PROGRAM;
	char **all;

	while (words[count] != NULL)
		count++;
	all = calloc(PROGRAM + count + 2, sizeof *all);
	if (all != NULL) {
		memcpy(all, program, sizeof program);
		for (size_t each = 1; each < count; each++) {
			all[at++] = words[each];
			if (each == 1 && alone)
				all[at++] = "--no-service";
		}
		execv(*program, all);
	}
	dprintf(STDERR_FILENO, "exeat: %s cannot be executed: %s\n", *program, strerror(errno));
	exit(LOST);
}

/* Refuse to run from a copy of the environment that this was installed in: `program` is the original's. */
static void refuse_copy(void)
{
	static const char installed[] = EXEAT_PLACE;
	char here[4096];
	ssize_t size = readlink("/proc/self/exe", here, sizeof here - 1);

	if (size < 0 || ((size_t)size == sizeof installed - 1 && memcmp(here, installed, (size_t)size) == 0))
		return; /* no /proc: it can't be told */
	here[size] = '\0';
	dprintf(STDERR_FILENO, "exeat: %s is a copy of %s and would run the code there; run `make clean setup` here\n",
		here, installed);
	exit(LOST);
}

/* Whether a service may be asked. A terminal's keys are passed on by Python, which knows what terminals are. */
static int may_ask(char **words)
{
	if (words[0] == NULL || words[1] == NULL || strcmp(words[1], "run") != 0)
		return 0;
	for (words += 2; *words != NULL && strcmp(*words, "--") != 0; words++)
		if (!strcmp(*words, "-h") || !strcmp(*words, "--help") || !strcmp(*words, "--no-service"))
			return 0;
	for (int fd = 0; fd < 3; fd++)
		if (isatty(fd))
			return 0;
	return 1;
}

/* Put /dev/null where a standard stream is closed: whatever is opened next would take its place. Returns 0 or -1. */
static int open_standard_streams(void)
{
	for (int fd = 0; fd < 3; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd) /* the lowest that is free */
			return -1;
	return 0;
}

/* Where the service listens (`place.py`). Returns whether there is a place for one. */
static int find(struct sockaddr_un *address)
{
	const char *base = getenv("EXEAT_CONTROL"), *rest = "";
	int size;

	if (base == NULL || !*base) {
		base = geteuid() == 0 ? "/run" : getenv("XDG_RUNTIME_DIR");
		rest = "/exeat/control";
	}
	if (base == NULL || *base != '/')
		return 0;
	memset(address, 0, sizeof *address);
	address->sun_family = AF_UNIX;
	size = snprintf(address->sun_path, sizeof address->sun_path, "%s%s", base, rest);
	return size > 0 && (size_t)size < sizeof address->sun_path;
}

/* Read a file of /proc about a process, as a string; what is longer than `room` is cut. Returns how long it is. */
static size_t look(const char *process, const char *name, char *text, size_t room)
{
	char path[64];
	ssize_t size;
	int file;

	snprintf(path, sizeof path, "/proc/%s/%s", process, name);
	file = open(path, O_RDONLY | O_CLOEXEC);
	size = file < 0 ? -1 : read(file, text, room - 1);
	if (file >= 0)
		close(file);
	text[size < 0 ? 0 : size] = '\0';
	return size < 0 ? 0 : (size_t)size;
}

/* How far below ours the pid namespace of a process is (proc_pid_status(5), NSpid): as many ids has it there. 0: unknown */
static int depth(const char *process)
{
	char status[1 << 14], *ids;
	int found = 0;

	look(process, "status", status, sizeof status);
	ids = strstr(status, "\nNSpid:"); /* a name has no new lines: the kernel writes them otherwise */
	for (; ids != NULL && *++ids && *ids != '\n';)
		found += *ids == '\t';
	return found;
}

/* Whether who began to listen is there still: else its number may be another's (Linux 6.5; before, it counts). */
static int is_alive(int connection)
{
	int pidfd, there;
	socklen_t size = sizeof pidfd;

	if (getsockopt(connection, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) < 0)
		return errno == ENOPROTOOPT;
	there = syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0) == 0 || errno == EPERM;
	close(pidfd);
	return there;
}

/*
 * Whether who listens is who we are, and in no sandbox: a task of an ordinary user's has that user's uid, but namespaces
 * of its own (`place.is_ours`).
 */
static int is_ours(int connection)
{
	char process[16], its[1 << 14], ours[1 << 14];
	struct ucred who;
	socklen_t size = sizeof who;

	if (getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &who, &size) < 0 || who.uid != geteuid())
		return 0;
	snprintf(process, sizeof process, "%d", (int)who.pid);
	return look(process, "uid_map", its, sizeof its) > 0 && look("self", "uid_map", ours, sizeof ours) > 0 &&
	       strcmp(its, ours) == 0 && depth(process) > 0 && depth(process) == depth("self") && is_alive(connection);
}

/* Returns a connection to a service that is ours: nobody else gets our environment and our directory. -1: there is none. */
static int reach(void)
{
	struct sockaddr_un address;
	int connection;

	if (!find(&address))
		return -1;
	connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (connection < 0)
		return -1;
	if (connect(connection, (struct sockaddr *)&address, sizeof address) == 0 && is_ours(connection))
		return connection;
	close(connection);
	return -1;
}

/* Which signals our caller had set to be ignored, a bit each. Python ignores two itself, so no task has those from it. */
static uint64_t ignored(void)
{
	uint64_t found = 0;

	for (int number = 1; number <= SIGNALS; number++) {
		struct sigaction how;

		if (number != SIGPIPE && number != SIGXFSZ && sigaction(number, NULL, &how) == 0 && how.sa_handler == SIG_IGN)
			found |= UINT64_C(1) << (number - 1);
	}
	return found;
}

/* Write what a task is to have of us (`protocol.pack`): its words, then the environment, each ended by a NUL. */
static int describe(FILE *request, char **words, char **environment)
{
	size_t count = 0, variables = 0;
	mode_t mask = umask(077);

	umask(mask);
	while (words[count] != NULL)
		count++;
	for (char **each = environment; *each != NULL; each++)
		variables += strchr(*each, '=') != NULL; /* what has no name is no variable */
	fprintf(request, "%zu %u %llu %d %zu ", count, (unsigned)mask, (unsigned long long)ignored(),
		getpriority(PRIO_PROCESS, 0), variables);
	for (int number = 0; number < LIMITS; number++) {
		struct rlimit limit;

		if (getrlimit(number, &limit) < 0)
			return -1;
		fprintf(request, "%s%lld:%lld", number ? "," : "", (long long)limit.rlim_cur, (long long)limit.rlim_max);
	}
	fputc('\n', request);
	for (; *words != NULL; words++)
		fwrite(*words, 1, strlen(*words) + 1, request);
	for (; *environment != NULL; environment++)
		if (strchr(*environment, '=') != NULL)
			fwrite(*environment, 1, strlen(*environment) + 1, request);
	return fflush(request) || ferror(request) ? -1 : 0;
}

static int send_request(int connection, int here, int request)
{
	char hello[] = "exeat 1 run"; /* `protocol.hello` */
	int given[] = {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO, here, request};
	union {
		struct cmsghdr header;
		char data[CMSG_SPACE(sizeof given)];
	} rights = {.header = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof given)}};
	struct iovec said = {.iov_base = hello, .iov_len = strlen(hello)};
	struct msghdr message = {
		.msg_iov = &said, .msg_iovlen = 1, .msg_control = rights.data, .msg_controllen = sizeof rights.data};

	struct rlimit own, most;
	ssize_t sent;

	memcpy(CMSG_DATA(&rights.header), given, sizeof given);
	sent = sendmsg(connection, &message, MSG_NOSIGNAL);
	if (sent < 0 && errno == ETOOMANYREFS && getrlimit(RLIMIT_NOFILE, &own) == 0) { /* proxy/rights.py says why */
		most = (struct rlimit){.rlim_cur = own.rlim_max, .rlim_max = own.rlim_max};
		if (setrlimit(RLIMIT_NOFILE, &most) == 0)
			sent = sendmsg(connection, &message, MSG_NOSIGNAL);
		setrlimit(RLIMIT_NOFILE, &own);
	}
	return sent < 0 ? -1 : 0;
}

/* Ask for a run. Returns 0 when it is asked for. */
static int ask(int connection, char **words)
{
	struct sigaction ignore = {.sa_handler = SIG_IGN}, before;
	int here = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC), file = memfd_create("exeat-run", MFD_CLOEXEC), asked = -1;
	FILE *request = file < 0 ? NULL : fdopen(file, "w");

	if (here >= 0 && request != NULL && sigaction(SIGXFSZ, &ignore, &before) == 0) {
		/* A limit on the size of files (RLIMIT_FSIZE) is on this one too; that is for Python to say. */
		asked = describe(request, words, environ);
		sigaction(SIGXFSZ, &before, NULL);
		if (asked == 0)
			asked = send_request(connection, here, file);
	}
	if (request != NULL)
		fclose(request);
	else if (file >= 0)
		close(file);
	if (here >= 0)
		close(here);
	return asked;
}

static int has_terminal(void) /* tty(4) */
{
	int fd = open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

/* Tell of a signal, and whether it came from a terminal: a shell that says SIGHUP when its terminal is gone means that. */
static void pass_on(int signals, int connection, int had_terminal)
{
	struct signalfd_siginfo arrived;
	char call[64];
	int terminal, size;

	if (read(signals, &arrived, sizeof arrived) != sizeof arrived)
		return;
	terminal = arrived.ssi_code == SI_KERNEL || (arrived.ssi_signo == SIGHUP && had_terminal && !has_terminal());
	size = snprintf(call, sizeof call, "signal %u %d", (unsigned)arrived.ssi_signo, terminal);
	(void)send(connection, call, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL); /* if it is over, that will be heard */
}

/* Wait for the service's last word, and leave it in `said`, a string; it is empty when nobody is there any more. */
static void wait_for_word(int connection, int signals, char *said)
{
	struct pollfd both[] = {{.fd = connection, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
	int had_terminal = has_terminal();

	for (;;) {
		ssize_t size;

		if (poll(both, 2, -1) < 0)
			continue; /* EINTR: it was stopped and goes on */
		if (both[1].revents)
			pass_on(signals, connection, had_terminal);
		if (!both[0].revents)
			continue;
		/* Descriptors would be closed by the kernel. A reset is told once, before what was said last: unix(7). */
		size = recv(connection, said, LARGEST_PACKET, MSG_DONTWAIT);
		if (size < 0 && (errno == ECONNRESET || errno == EAGAIN || errno == EINTR))
			continue;
		said[size < 0 || memchr(said, '\0', (size_t)size) ? 0 : size] = '\0'; /* a word has none */
		return;
	}
}

/* End as a task did whose wait status this is, as waitpid(2) has it. */
static _Noreturn void end_like(int status)
{
	if (WIFSIGNALED(status)) {
		struct rlimit core;
		sigset_t its;

		/* No core of ours for a crash of the task's: 1 byte is less than any, and for 0 a program might be run. */
		if (getrlimit(RLIMIT_CORE, &core) == 0 && core.rlim_max > 0) {
			core.rlim_cur = 1;
			setrlimit(RLIMIT_CORE, &core);
		}
		signal(WTERMSIG(status), SIG_DFL);
		sigemptyset(&its);
		sigaddset(&its, WTERMSIG(status));
		sigprocmask(SIG_UNBLOCK, &its, NULL);
		kill(getpid(), WTERMSIG(status));
		_exit(128 + WTERMSIG(status));
	}
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : LOST);
}

/* Do as the last word says. Returns only where the task is to run without the service. */
static void heed(const char *said)
{
	char *end;
	long status;

	if (strncmp(said, "declined ", 9) == 0) {
		dprintf(STDERR_FILENO, "exeat: %s; this task runs without the service\n", said + 9);
		return;
	}
	if (strncmp(said, "status ", 7) == 0) {
		status = strtol(said + 7, &end, 10);
		if (isdigit((unsigned char)said[7]) && !*end && end <= said + 12 && status <= UINT16_MAX &&
		    (status & 0x7f) != 0x7f) /* nobody who has stopped has ended */
			end_like((int)status);
	}
	dprintf(STDERR_FILENO, "exeat: what looked after the task has ended, and the task with it\n");
	_exit(LOST);
}

/* Have the service run it, and end as it did. Returns where no service does. */
static void run_in_service(char **words)
{
	static char said[LARGEST_PACKET + 1];
	sigset_t these, before;
	int connection = reach(), signals;

	if (connection < 0)
		return;
	sigemptyset(&these);
	for (size_t each = 0; each < sizeof watched / sizeof *watched; each++)
		sigaddset(&these, watched[each]);
	signals = signalfd(-1, &these, SFD_CLOEXEC | SFD_NONBLOCK);
	sigprocmask(SIG_BLOCK, &these, &before); /* what comes from here on is the task's */
	if (signals >= 0 && ask(connection, words) == 0) {
		wait_for_word(connection, signals, said);
		heed(said);
	}
	sigprocmask(SIG_SETMASK, &before, NULL);
}

int main(int argc, char **argv)
{
	(void)argc;
	refuse_copy();
	if (!may_ask(argv) || open_standard_streams() < 0)
		be_python(argv, 0);
	run_in_service(argv + 2);
	be_python(argv, 1);
}
