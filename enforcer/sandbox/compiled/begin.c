/* The last steps of a task before it is a program: `enforcer/sandbox/begin.py` says which, in which order and why.
 *
 * Its process shares init's memory until it executes the program (clone(2), CLONE_VM), as vfork(2) does it: a fork would
 * copy what leads to every page of an interpreter, and the execve(2) let go of all of it. So nothing here allocates,
 * calls back into Python or writes anywhere but to this stack and to `struct task`; init waits meanwhile. Everything is
 * the process's own but memory and what the kernel keeps with it: whether that may be dumped, which it may only as long
 * as init writes the id maps, and never when anything of the task's runs.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PUBLIC __attribute__((visibility("default")))

PUBLIC const char exeat_source[] = EXEAT_SOURCE; /* what it was compiled of */

enum { GUARD = 64 << 10, STACK = 256 << 10, TEXT = 64 << 10, CANNOT_MAKE = 125, LEAST_LAST_CAPABILITY = 37, SECURE = 0xEF };
enum { LANDLOCK_CREATE = 444, LANDLOCK_ADD = 445, LANDLOCK_RESTRICT = 446, PATH_BENEATH = 1 };
static const char FIRST[] = "1000"; /* before init, which is in the same cgroup: with it, all of the sandbox goes */

enum { LISTENER = 1 << 3, WAIT_KILLABLE = 1 << 5 }; /* SECCOMP_FILTER_FLAG_NEW_LISTENER, _WAIT_KILLABLE_RECV */

enum state { BEGUN, EXECUTING, EXECUTED_NOT }; /* the first is the one that nothing is known of */

struct grant {
	const char *path;
	uint64_t rights, of_files; /* the latter are left of them if it is no directory */
};

struct limit {
	int32_t which;
	uint64_t soft, hard;
};

/* What there is to do, and how it went. `enforcer/sandbox/compiled/library.py` has the same. */
struct task {
	const char *uid_map, *gid_map, *directory;
	char *const *argv, *const *environment;
	const char *const *programs; /* to be tried one after the other */
	const struct grant *wall;
	const struct limit *limits;
	const uint8_t *filter, *watched; /* system calls; the latter if somebody listens */
	uint64_t ignored;                /* signals, a bit each, the lowest for signal 1 */
	uint64_t handled, scoped, device; /* of Landlock; the last is what may be done with a device that it has already */
	uint32_t uid, gid;
	int32_t stdio[3], terminal, watch, channel;
	uint32_t walls, wall_size, limited, filter_size, watched_size;
	/* and back */
	int32_t state, error; /* `error` is an errno; 0: of what failed none is known */
	const char *step;     /* that failed; NULL: none did */
	int32_t pid, other;   /* `other`: init's own end of `channel`, which the task has no use for */
};

static int failed(struct task *task, const char *step)
{
	task->error = errno;
	task->step = step;
	return -1;
}

static int give_up_privileges(struct task *task)
{
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct none[2] = {{0}};

	/* Not glibc's own of these names, which are for all threads of a process: there is one, and it isn't in its list. */
	if (syscall(SYS_setresgid, task->gid, task->gid, task->gid) || syscall(SYS_setresuid, task->uid, task->uid, task->uid))
		return failed(task, "setresuid");
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)) /* a change of uid makes of it what fs.suid_dumpable says: proc_sys_fs(5) */
		return failed(task, "prctl PR_SET_DUMPABLE");
	if (prctl(PR_SET_SECUREBITS, SECURE, 0, 0, 0))
		return failed(task, "prctl PR_SET_SECUREBITS");
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
		return failed(task, "prctl PR_CAP_AMBIENT");
	for (int capability = 0; capability < 64; capability++) {
		if (!prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))
			continue;
		if (errno != EINVAL || capability <= LEAST_LAST_CAPABILITY)
			return failed(task, "prctl PR_CAPBSET_DROP");
		break; /* past the last one that this kernel has */
	}
	if (syscall(SYS_capset, &head, none))
		return failed(task, "capset");
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ? failed(task, "prctl PR_SET_NO_NEW_PRIVS") : 0;
}

/* Make the three its 0, 1 and 2, the channels 3 and 4, and close everything else. */
static int keep_own(struct task *task)
{
	int moved[5] = {task->stdio[0], task->stdio[1], task->stdio[2], task->channel, task->watch};

	for (int number = 0; number < 5; number++)
		if ((moved[number] = fcntl(moved[number], F_DUPFD_CLOEXEC, 5)) < 0)
			return failed(task, "fcntl F_DUPFD_CLOEXEC");
	for (int number = 0; number < 5; number++)
		if ((number < 3 ? dup2(moved[number], number) : dup3(moved[number], number, O_CLOEXEC)) < 0)
			return failed(task, "dup2");
	task->channel = 3;
	task->watch = 4;
	return syscall(SYS_close_range, 5, ~0U, 0) ? failed(task, "close_range") : 0;
}

/* glibc's sigaction(2) refuses the signals that it keeps to itself, and nobody has said anything of those. */
static int dispose(struct task *task)
{
	for (int number = 1; number < NSIG; number++) {
		struct sigaction act = {.sa_handler = task->ignored >> (number - 1) & 1 ? SIG_IGN : SIG_DFL};

		if (number != SIGKILL && number != SIGSTOP && sigaction(number, &act, NULL) && errno != EINVAL)
			return failed(task, "sigaction");
	}
	return 0;
}

static int wall_in(struct task *task)
{
	struct {
		uint64_t handled, network, scoped;
	} ruled = {task->handled, 0, task->scoped};
	struct {
		uint64_t rights;
		int32_t place;
	} __attribute__((packed)) rule;
	struct stat status;
	int rules;

	if (!task->wall_size)
		return 0; /* the kernel can't */
	if ((rules = syscall(LANDLOCK_CREATE, &ruled, (size_t)task->wall_size, 0)) < 0)
		return failed(task, "landlock_create_ruleset");
	for (uint32_t number = 0; number < task->walls; number++) {
		const struct grant *grant = &task->wall[number];

		rule.place = open(grant->path, O_PATH | O_CLOEXEC);
		if (rule.place < 0 && errno == ENOENT)
			continue;
		if (rule.place < 0 || fstat(rule.place, &status))
			return failed(task, "look at what is granted");
		rule.rights = grant->rights & task->handled & (S_ISDIR(status.st_mode) ? ~0ULL : grant->of_files);
		if (syscall(LANDLOCK_ADD, rules, PATH_BENEATH, &rule, 0))
			return failed(task, "landlock_add_rule");
		close(rule.place);
	}
	for (rule.place = 0; rule.place < 3; rule.place++) {
		if (fstat(rule.place, &status))
			return failed(task, "look at what is granted");
		rule.rights = task->device & task->handled;
		if (S_ISCHR(status.st_mode) && syscall(LANDLOCK_ADD, rules, PATH_BENEATH, &rule, 0))
			return failed(task, "landlock_add_rule");
	}
	if (syscall(LANDLOCK_RESTRICT, rules, 0))
		return failed(task, "landlock_restrict_self");
	close(rules);
	return 0;
}

/* Lower limits, soft and hard; what is lower already stays. */
static int limit(struct task *task)
{
	struct rlimit have;

	for (uint32_t number = 0; number < task->limited; number++) {
		const struct limit *each = &task->limits[number];

		if (getrlimit(each->which, &have))
			return failed(task, "setrlimit");
		have.rlim_cur = have.rlim_cur < each->soft ? have.rlim_cur : each->soft; /* RLIM_INFINITY is the largest */
		have.rlim_max = have.rlim_max < each->hard ? have.rlim_max : each->hard;
		if (setrlimit(each->which, &have))
			return failed(task, "setrlimit");
	}
	return 0;
}

static int give_away(struct task *task, int listener)
{
	char byte = 'l';
	struct iovec one = {&byte, 1};
	union {
		char room[CMSG_SPACE(sizeof listener)];
		struct cmsghdr aligned;
	} rights = {{0}};
	struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = &rights, .msg_controllen = sizeof rights};
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof listener);
	memcpy(CMSG_DATA(head), &listener, sizeof listener);
	if (sendmsg(task->watch, &message, MSG_NOSIGNAL) < 0)
		return failed(task, "sendmsg");
	close(listener);
	return 0;
}

/* Load the filter whose listener somebody waits for, or where that can't be had the plain one. */
static int filter_calls(struct task *task)
{
	struct sock_fprog watched = {task->watched_size / 8, (struct sock_filter *)task->watched};
	struct sock_fprog plain = {task->filter_size / 8, (struct sock_filter *)task->filter};
	long listener = -1;

	if (task->watched_size) {
		listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, LISTENER | WAIT_KILLABLE, &watched);
		if (listener < 0 && errno == EINVAL)
			listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, LISTENER, &watched);
	}
	if (listener >= 0)
		return give_away(task, (int)listener);
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &plain, 0, 0) ? failed(task, "prctl PR_SET_SECCOMP") : 0;
}

/* Execute the first of the programs that can be; what is told otherwise is what Python's os.execvpe tells. */
static void execute(struct task *task)
{
	int told = 0;

	task->state = EXECUTING;
	for (const char *const *program = task->programs; *program; program++) {
		execve(*program, task->argv, task->environment);
		if (errno != ENOENT && errno != ENOTDIR && !told)
			told = errno;
	}
	task->error = told ? told : errno;
	task->state = EXECUTED_NOT;
}

/* Have init say what to print, and which status to end with: the first byte of what it says.
 *
 * Init goes on as soon as it hears of this, and lets go of `struct task`: from here on there is this stack and no more.
 */
static int say_why(const int channel)
{
	char text[TEXT];
	ssize_t size;

	if (send(channel, "x", 1, MSG_NOSIGNAL) != 1 || (size = recv(channel, text, sizeof text, 0)) < 1)
		return CANNOT_MAKE;
	for (ssize_t at = 1, wrote; at < size; at += wrote)
		if ((wrote = write(2, &text[at], size - at)) <= 0)
			break;
	return (unsigned char)text[0];
}

static int begin_session(struct task *task)
{
	/* A session of its own: a signal to one's own group crosses pid namespaces, and so does a shared terminal. */
	if (setsid() < 0)
		return failed(task, "setsid");
	return task->terminal >= 0 && ioctl(task->terminal, TIOCSCTTY, 0) ? failed(task, "ioctl TIOCSCTTY") : 0;
}

static int go_to_work(struct task *task)
{
	sigset_t none;

	sigemptyset(&none);
	if (sigprocmask(SIG_SETMASK, &none, NULL))
		return failed(task, "sigprocmask");
	return chdir(task->directory) ? failed(task, "chdir") : 0;
}

static int be_task(void *argument)
{
	struct task *task = argument;
	char byte;

	close(task->other);
	if (recv(task->channel, &byte, 1, 0) != 1)
		_exit(CANNOT_MAKE); /* its ids could not be mapped, or init is gone */
	if (give_up_privileges(task) || begin_session(task) || keep_own(task) || dispose(task) || go_to_work(task) ||
	    wall_in(task) || filter_calls(task) || limit(task))
		_exit(CANNOT_MAKE);
	execute(task);
	_exit(say_why(task->channel));
}

static int put(struct task *task, const char *name, const char *text)
{
	char path[64];
	ssize_t size = strlen(text);
	int file;

	snprintf(path, sizeof path, "/proc/%d/%s", task->pid, name);
	if ((file = open(path, O_WRONLY | O_CLOEXEC)) < 0)
		return failed(task, "open an id map");
	if (write(file, text, size) != size) {
		failed(task, "write an id map");
		close(file);
		return -1;
	}
	close(file);
	return 0;
}

/* Map its ids: through /proc, where nothing of memory that can't be dumped is ours (proc(5)). */
static int map_ids(struct task *task)
{
	return put(task, "setgroups", "deny") || put(task, "uid_map", task->uid_map) || put(task, "gid_map", task->gid_map);
}

/* Have the kernel choose us first when memory runs out, where we may (proc_pid_oom_score_adj(5)); `was`: as before. */
static int be_killed_first(char was[static 16])
{
	int file = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
	ssize_t size = file < 0 ? -1 : pread(file, was, 15, 0);

	if (size > 0 && pwrite(file, FIRST, strlen(FIRST), 0) > 0) {
		was[size] = 0;
		return file;
	}
	if (file >= 0)
		close(file);
	return -1;
}

/* Make its process, with its ids mapped. */
static int make(struct task *task, char *stack)
{
	task->pid = clone(be_task, stack + GUARD + STACK, CLONE_VM | CLONE_NEWUSER | SIGCHLD, task);
	if (task->pid < 0)
		failed(task, "clone");
	close(task->channel); /* in here: there it is another table of descriptors */
	return task->pid < 0 ? -1 : map_ids(task);
}

/* Begin the task in a user namespace of its own, and wait until it is a program, or `say_why` waits for words.
 *
 * `channel` is its end of a pair, `other` ours. Its pid is in `task`, and what failed; 0 or -1 is returned.
 */
PUBLIC int exeat_begin(struct task *task)
{
	char *stack = mmap(NULL, GUARD + STACK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	sigset_t all, before;
	char byte, was[16];
	ssize_t heard;
	int score, made;

	if (stack == MAP_FAILED)
		return failed(task, "mmap");
	if (mprotect(stack + GUARD, STACK, PROT_READ | PROT_WRITE))
		return failed(task, "mprotect");
	sigfillset(&all);
	if (sigprocmask(SIG_SETMASK, &all, &before)) /* no handler of ours runs in it */
		return failed(task, "sigprocmask");
	if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))
		return failed(task, "prctl PR_SET_DUMPABLE");
	score = be_killed_first(was); /* what shares memory has one score; it keeps it, and we take ours back */
	made = make(task, stack);
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) && !made)
		made = failed(task, "prctl PR_SET_DUMPABLE");
	if (!made && send(task->other, "m", 1, MSG_NOSIGNAL) != 1)
		made = failed(task, "send");
	if (made)
		shutdown(task->other, SHUT_RDWR); /* it ends */
	heard = recv(task->other, &byte, 1, 0); /* meanwhile no call of ours fails: `errno` is one for both */
	if (score >= 0) {
		(void)!pwrite(score, was, strlen(was), 0); /* without it we go first, too; and a program may run by now */
		close(score);
	}
	sigprocmask(SIG_SETMASK, &before, NULL);
	if (!task->step && (task->state == EXECUTED_NOT ? heard == 1 : task->state == EXECUTING && heard == 0))
		return 0; /* the stack stays: who waits for words is on it */
	if (!task->step) {
		task->error = 0;
		task->step = "its process ended";
	}
	if (task->pid > 0) { /* nothing of it is left when this is told, nor reads what is let go of then */
		kill(task->pid, SIGKILL);
		waitpid(task->pid, NULL, 0);
	}
	return -1;
}
