/* Sandbox init: executes lists of system calls that it receives over a channel, and replies with the results.
 *
 * `enforcer/sandbox/step_lists.py` defines the format of a call list. This program makes no decision of its own.
 *
 * A sandbox has three such processes: the outermost one, init and, until its program is executed, the task. Each has a
 * channel to the runner that made the sandbox; the task's program never has one. The process ends when the runner closes
 * the channel, and its children end with it.
 *
 * It is linked with no library: the start-up code of a C library took longer than half of the work here, most of it for
 * CPUID, which a hypervisor answers.
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

const char exeat_source[] __attribute__((used)) = "exeat_init.c " EXEAT_SOURCE; /* SHA-256 of the source */

enum { CHANNEL = 3, SIGNALS = 4, REGISTERS = 64, PACKET = 1 << 17, ARGUMENTS = 6, CANNOT_MAKE = 125, ANY = 0xFFFF };
enum { AFTER = 48 }; /* zero bytes at the end of a list: no argument points to its last bytes */
enum { CHECK = 0x10000, STORE, POINT, FORK }; /* pseudo calls, numbered above every system call */
enum { NUMBER, DATA, REGISTER };              /* kinds of arguments, two bits each */
enum { EXECUTED, ENDED };                     /* kinds of replies */

struct head {
	uint16_t calls;
	uint8_t taken, given, silent, unused[3];
	uint8_t registers[REGISTERS]; /* of the descriptors received, then of those to send back */
};

struct call {
	uint32_t number;
	uint16_t kinds;
	uint8_t result, unused;
	uint16_t but[2], to; /* ignored errors, and the call to continue at after one */
	uint16_t unused_too;
	uint64_t arguments[ARGUMENTS];
};

struct reply {
	int32_t what, at, error, unused; /* EXECUTED: the failed call and its errno; ENDED: a pid and its wait status */
	int64_t registers[REGISTERS];
};

static union {
	char bytes[PACKET];
	struct head head;
	uint64_t aligned; /* alignment of the calls and of the data after them */
} packet;
static int64_t registers[REGISTERS];
static int signals = SIGNALS, is_new; /* `is_new`: FORK has just made this process */
static int32_t child;                 /* the last process that FORK made: its end is reported */

static union {
	char room[CMSG_SPACE(REGISTERS * sizeof(int))];
	struct cmsghdr aligned;
} rights;

/* Makes a system call: syscall(2), "Architecture calling conventions". */
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
/* Compilers emit calls of these two. */
void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
	volatile char *there = to; /* else the compiler recognises a memcpy, and makes it call itself */

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

/* Sends a reply with the descriptors in some registers, and closes them here. A register with an error has none. */
static void send_reply(const struct reply *reply, const uint8_t *given, int count)
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

/* Forks a process that executes lists from `channel`, its own. A leaf has no children to reap. */
static long fork_child(int channel, int leaf)
{
	long pid = KERNEL(clone, SIGCHLD);

	if (pid) {
		child = pid;
		return pid;
	}
	is_new = 1;
	child = 0;
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

static long make_call(const struct call *call, char *data, size_t size)
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
	case POINT: /* the base in memory, the distance of the first offset from it in bytes, and the number of offsets */
		for (uint64_t *each = (uint64_t *)(a[0] + a[1]), *past = each + a[2]; each < past; each++)
			*each += *each ? a[0] : 0;
		return 0;
	case FORK:
		return fork_child(a[0], a[1]);
	default:
		return kernel(call->number, a);
	}
}

/* Executes the received list, and replies. An error that the list doesn't ignore ends this process. */
static void execute(size_t size)
{
	struct head *head = &packet.head;
	struct call *calls = (struct call *)(head + 1);
	struct reply reply = {.what = EXECUTED};
	char *data = (char *)(calls + head->calls);

	if (size < sizeof *head + AFTER || size - sizeof *head - AFTER < head->calls * sizeof *calls ||
	    head->taken + head->given > REGISTERS)
		end();
	size -= sizeof *head + head->calls * sizeof *calls;
	while (reply.at < head->calls) {
		struct call *call = &calls[reply.at];
		long result = make_call(call, data, size);

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
		send_reply(&reply, &head->registers[head->taken], reply.error ? 0 : head->given);
	if (reply.error)
		end();
}

/* Receives a list, and puts the descriptors that come with it into their registers. */
static void receive_list(void)
{
	struct iovec one = {&packet, sizeof packet};
	struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = &rights, .msg_controllen = sizeof rights};
	long size = KERNEL(recvmsg, CHANNEL, AT(&message), MSG_CMSG_CLOEXEC);
	struct cmsghdr *came = size > 0 ? CMSG_FIRSTHDR(&message) : NULL;
	size_t count = came ? (came->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;

	if (size <= 0 || message.msg_flags & (MSG_TRUNC | MSG_CTRUNC) || count != packet.head.taken)
		end(); /* the runner is gone, or the message is truncated */
	for (size_t number = 0; number < count; number++)
		registers[packet.head.registers[number] % REGISTERS] = ((int *)CMSG_DATA(came))[number];
	execute(size);
}

/* Reaps children: orphans of the task become children of init. */
static void reap(void)
{
	struct signalfd_siginfo arrived;
	int32_t status;
	long pid;

	KERNEL(read, SIGNALS, AT(&arrived), sizeof arrived);
	while ((pid = KERNEL(wait4, -1, AT(&status), WNOHANG)) > 0)
		if (pid == child)
			send_reply(&(struct reply){.what = ENDED, .at = pid, .error = status}, NULL, 0);
}

#ifdef EXEAT_HOSTED
int main(void)
#else
__attribute__((noreturn, used)) void start(void);
/* At the entry point there is only a stack, and it isn't aligned for a function. */
#if defined __x86_64__
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tand $-16, %rsp\n\tcall start\n");
#else
__asm__(".globl _start\n_start:\n\tbl start\n");
#endif

void start(void)
#endif
{
	/* A terminal sends these to its whole foreground group; only the task is to act on them. */
	static const uint8_t from_terminal[] = {SIGINT, SIGQUIT, SIGHUP, SIGTERM, SIGTSTP, SIGTTOU};
	const uint64_t ignore[4] = {AT(SIG_IGN)}, dispose[4] = {AT(SIG_DFL)}, children = 1 << (SIGCHLD - 1); /* as the kernel has them: rt_sigaction(2) */

	for (size_t number = 0; number < sizeof from_terminal; number++)
		KERNEL(rt_sigaction, from_terminal[number], AT(ignore), 0, sizeof children);
	KERNEL(rt_sigaction, SIGCHLD, AT(dispose), 0, sizeof children); /* an ignored SIGCHLD would leave no status */
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
			receive_list();
	}
}
