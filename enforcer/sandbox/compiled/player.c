/* Plays programs of system calls: `enforcer/sandbox/system_calls.py` says what they are, and who writes them decides all.
 *
 * This is what a sandbox's own processes are: its outermost one, its init and, until it is executed, its task. Each has
 * a channel to who made the sandbox, which nothing of the task's ever has; over that come programs, and what came of
 * them goes back. It ends when nobody is at the other end any more, and whatever it has begun ends with it.
 *
 * It is linked with no library: what one does before it calls main() took longer than half of what is done here, most of
 * it for asking a processor of a virtual machine what it is.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

const char exeat_source[] __attribute__((used)) = "player.c " EXEAT_SOURCE; /* what it was compiled of */

enum { CHANNEL = 3, SIGNALS = 4, REGISTERS = 64, PACKET = 1 << 17, ARGUMENTS = 6, CANNOT_MAKE = 125, ANY = 0xFFFF };
enum { AFTER = 48 }; /* bytes of nothing, at least, after all that an argument can point to */
enum { CHECK = 0x10000, STORE, POINT, FORK }; /* calls that are none of the kernel's */
enum { NUMBER, DATA, REGISTER };              /* kinds of arguments, two bits each */
enum { PLAYED, ENDED };                       /* what is told */

struct head {
	uint16_t calls;
	uint8_t taken, given, silent, unused[3];
	uint8_t registers[REGISTERS]; /* of the descriptors that come, then of those that go */
};

struct call {
	uint32_t number;
	uint16_t kinds;
	uint8_t result, unused;
	uint16_t but[2], to; /* errors that matter nothing, and the call to go on with then */
	uint16_t unused_too;
	uint64_t arguments[ARGUMENTS];
};

struct reply {
	int32_t what, at, error, unused; /* or its id, and its wait status */
	int64_t registers[REGISTERS];
};

static union {
	char bytes[PACKET];
	struct head head;
	uint64_t aligned; /* calls, and what is in data, lie at multiples of this from here */
} packet;
static int64_t registers[REGISTERS];
static int signals = SIGNALS, is_new; /* `is_new`: this process was begun by the program that it is in */
static int32_t begun;                 /* whose end is told */

static union {
	char room[CMSG_SPACE(REGISTERS * sizeof(int))];
	struct cmsghdr aligned;
} rights;

/* Make a system call: syscall(2), "Architecture calling conventions". */
static long kernel(long number, const uint64_t with[static ARGUMENTS])
{
	long result;
#if defined __x86_64__
	register uint64_t fourth __asm__("r10") = with[3], fifth __asm__("r8") = with[4], sixth __asm__("r9") = with[5];

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(with[0]), "S"(with[1]), "d"(with[2]), "r"(fourth), "r"(fifth), "r"(sixth)
			 : "rcx", "r11", "memory");
#elif defined __aarch64__
	register uint64_t which __asm__("x8") = number, second __asm__("x1") = with[1], third __asm__("x2") = with[2];
	register uint64_t fourth __asm__("x3") = with[3], fifth __asm__("x4") = with[4], sixth __asm__("x5") = with[5];
	register long first __asm__("x0") = with[0];

	__asm__ volatile("svc 0"
			 : "+r"(first)
			 : "r"(which), "r"(second), "r"(third), "r"(fourth), "r"(fifth), "r"(sixth)
			 : "memory");
	result = first;
#else
#error "no system calls are known for this machine"
#endif
	return result;
}

#define KERNEL(number, ...) kernel(SYS_##number, (const uint64_t[ARGUMENTS]){__VA_ARGS__})
#define AT(what) ((uintptr_t)(what))

static void __attribute__((noreturn)) end(void)
{
	for (;;)
		KERNEL(exit_group, CANNOT_MAKE);
}

#ifndef EXEAT_HOSTED
/* Compilers take these for granted. */
void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
	volatile char *there = to; /* or else it would be seen for what it is, and call itself */

	for (const char *here = from; size; size--)
		*there++ = *here++;
	return to;
}

void *memset(void *there, int what, size_t size)
{
	for (volatile char *each = there; size; size--)
		*each++ = what;
	return there;
}
#endif

/* Say something, and give away the descriptors that some registers have: those that have an error have none. */
static void tell(const struct reply *reply, const uint8_t *given, int count)
{
	struct iovec one = {(void *)reply, sizeof *reply};
	struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1};
	int *giving = (int *)CMSG_DATA(&rights.aligned), many = 0;

	for (int number = 0; number < count; number++)
		if (registers[given[number] % REGISTERS] >= 0)
			giving[many++] = registers[given[number] % REGISTERS];
	if (many) {
		rights.aligned.cmsg_len = CMSG_LEN(many * sizeof(int));
		rights.aligned.cmsg_level = SOL_SOCKET;
		rights.aligned.cmsg_type = SCM_RIGHTS;
		message.msg_control = &rights;
		message.msg_controllen = CMSG_SPACE(many * sizeof(int));
	}
	if (KERNEL(sendmsg, CHANNEL, AT(&message), MSG_NOSIGNAL) < 0)
		end();
	while (many)
		KERNEL(close, giving[--many]);
}

/* Begin a process that plays what comes over `channel`, which is its alone. A leaf has none of its own to look after. */
static long begin(int channel, int leaf)
{
	long pid = KERNEL(clone, SIGCHLD);

	if (pid) {
		begun = pid;
		return pid;
	}
	is_new = 1;
	begun = 0;
	if (KERNEL(dup3, channel, CHANNEL, O_CLOEXEC) < 0 || KERNEL(close_range, SIGNALS + 1, ~0U))
		end();
	if (leaf) {
		KERNEL(close, SIGNALS);
		signals = -1;
	} else if (KERNEL(prctl, PR_SET_PDEATHSIG, SIGKILL)) {
		end();
	}
	return 0;
}

static long make(const struct call *call, char *data, size_t size)
{
	uint64_t a[ARGUMENTS];
	uint32_t found;

	for (int number = 0; number < ARGUMENTS; number++) {
		int kind = call->kinds >> 2 * number & 3;

		a[number] = call->arguments[number];
		if (kind == DATA && a[number] > size - AFTER)
			return -EFAULT;
		if (kind == DATA)
			a[number] = (uintptr_t)(data + a[number]);
		if (kind == REGISTER)
			a[number] = registers[a[number] % REGISTERS];
	}
	switch (call->number) {
	case CHECK:
		__builtin_memcpy(&found, (void *)a[0], sizeof found);
		return (found & a[1]) == a[2] ? 0 : -(long)a[3];
	case STORE:
		found = a[1];
		__builtin_memcpy((void *)a[0], &found, sizeof found);
		return 0;
	case POINT: /* where the offsets are in memory, how many bytes from there, and how many of them */
		for (uint64_t *each = (uint64_t *)(a[0] + a[1]), *past = each + a[2]; each < past; each++)
			*each += *each ? a[0] : 0;
		return 0;
	case FORK:
		return begin(a[0], a[1]);
	default:
		return kernel(call->number, a);
	}
}

/* Play the program that has come, and say what came of it. A failure that matters is the end of this process. */
static void play(size_t size)
{
	struct head *head = &packet.head;
	struct call *calls = (struct call *)(head + 1);
	struct reply reply = {.what = PLAYED};
	char *data = (char *)(calls + head->calls);

	if (size < sizeof *head + AFTER || size - sizeof *head - AFTER < head->calls * sizeof *calls ||
	    head->taken + head->given > REGISTERS)
		end();
	size -= sizeof *head + head->calls * sizeof *calls;
	while (reply.at < head->calls) {
		struct call *call = &calls[reply.at];
		long result = make(call, data, size);

		if (is_new) {
			is_new = 0;
			return;
		}
		registers[call->result % REGISTERS] = result;
		if (result >= 0) {
			reply.at++;
		} else if (call->to > reply.at && (call->but[0] == ANY || call->but[0] == -result || call->but[1] == -result)) {
			reply.at = call->to;
		} else {
			reply.error = -result;
			break;
		}
	}
	__builtin_memcpy(reply.registers, registers, sizeof registers);
	if (reply.error || !head->silent)
		tell(&reply, &head->registers[head->taken], reply.error ? 0 : head->given);
	if (reply.error)
		end();
}

/* Wait for a program, and put the descriptors that come with it where it wants them. */
static void listen_to_channel(void)
{
	struct iovec one = {&packet, sizeof packet};
	struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = &rights, .msg_controllen = sizeof rights};
	long size = KERNEL(recvmsg, CHANNEL, AT(&message), MSG_CMSG_CLOEXEC);
	struct cmsghdr *came = size > 0 ? CMSG_FIRSTHDR(&message) : NULL;
	size_t count = came ? (came->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;

	if (size <= 0 || message.msg_flags & (MSG_TRUNC | MSG_CTRUNC) || count != packet.head.taken)
		end(); /* nobody is there any more, or not all of it could be had */
	for (size_t number = 0; number < count; number++)
		registers[packet.head.registers[number] % REGISTERS] = ((int *)CMSG_DATA(came))[number];
	play(size);
}

/* Collect whatever has ended: all that a task leaves alone comes to its init. */
static void reap(void)
{
	struct signalfd_siginfo arrived;
	int32_t status;
	long pid;

	KERNEL(read, SIGNALS, AT(&arrived), sizeof arrived);
	while ((pid = KERNEL(wait4, -1, AT(&status), WNOHANG)) > 0)
		if (pid == begun)
			tell(&(struct reply){.what = ENDED, .at = pid, .error = status}, NULL, 0);
}

#ifdef EXEAT_HOSTED
int main(void)
#else
__attribute__((noreturn, used)) void begin_here(void);
/* Where the kernel begins has nothing of what a function wants but a stack. */
#if defined __x86_64__
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tand $-16, %rsp\n\tcall begin_here\n");
#else
__asm__(".globl _start\n_start:\n\tbl begin_here\n");
#endif

void begin_here(void)
#endif
{
	/* A terminal sends these to everyone in the foreground; only the task is to act on them. */
	static const uint8_t from_terminal[] = {SIGINT, SIGQUIT, SIGHUP, SIGTERM, SIGTSTP, SIGTTOU};
	const uint64_t ignore[4] = {AT(SIG_IGN)}, dispose[4] = {AT(SIG_DFL)}, children = 1 << (SIGCHLD - 1); /* as the kernel has them: rt_sigaction(2) */

	for (size_t number = 0; number < sizeof from_terminal; number++)
		KERNEL(rt_sigaction, from_terminal[number], AT(ignore), 0, sizeof children);
	KERNEL(rt_sigaction, SIGCHLD, AT(dispose), 0, sizeof children); /* ignored, as it may have been, it leaves no status */
	for (int number = 0; number < REGISTERS; number++)
		registers[number] = -1;
	KERNEL(prctl, PR_SET_NAME, AT("exeat-init"));
	if (KERNEL(close_range, SIGNALS, ~0U) || KERNEL(rt_sigprocmask, SIG_SETMASK, AT(&children), 0, sizeof children))
		end();
	if (KERNEL(signalfd4, -1, AT(&children), sizeof children, O_CLOEXEC | O_NONBLOCK) != SIGNALS ||
	    KERNEL(fcntl, CHANNEL, F_SETFD, FD_CLOEXEC))
		end();
	for (;;) {
		struct pollfd ready[] = {{CHANNEL, POLLIN, 0}, {signals, POLLIN, 0}};
		long found = KERNEL(ppoll, AT(ready), 2, 0, 0, sizeof children);

		if (found < 0 && found != -EINTR)
			end();
		if (ready[1].revents & POLLIN)
			reap();
		if (ready[0].revents)
			listen_to_channel();
	}
}
