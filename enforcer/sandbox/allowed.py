"""Which system calls a task is let make, and which it is told that there are none of.

The common case: what shells, compilers, package managers, language runtimes and browsers use (Python, Node.js, Go, the
JVM, git, cargo, Chromium, apt), held against the lists of systemd's @system-service and of the container engines. What
neither these two lists nor `seccomp`'s refusals name doesn't exist in `syscalls`; a test holds all three together.
"""

from typing import Final

_FILES: Final = """
    access chdir chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
    fallocate fchdir fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fstat fstatfs fsync ftruncate
    futimesat getcwd getdents getdents64 getxattr getxattrat ioctl lchown lgetxattr link linkat listxattr
    listxattrat llistxattr lseek lstat mkdir mkdirat name_to_handle_at newfstatat open openat pipe pipe2 pread64
    preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv rename renameat renameat2
    rmdir sendfile splice stat statfs statx symlink symlinkat sync_file_range syncfs tee truncate umask unlink
    unlinkat utime utimensat utimes vmsplice write writev chmod fchmod fchmodat fchmodat2 mknod mknodat
"""
_WAITING: Final = """
    epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 inotify_add_watch
    inotify_init inotify_init1 inotify_rm_watch fanotify_mark pause poll ppoll pselect6 select signalfd signalfd4
    timerfd_create timerfd_gettime timerfd_settime
"""
_MEMORY: Final = """
    brk get_mempolicy madvise map_shadow_stack mbind membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall
    mmap mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_madvise
    process_mrelease process_vm_readv process_vm_writev remap_file_pages set_mempolicy
"""
_PROCESSES: Final = """
    arch_prctl capget capset clone execve execveat exit exit_group fork get_robust_list get_thread_area getcpu getegid
    geteuid getgid getgroups getpgid getpgrp getpid getppid getpriority getresgid getresuid getrlimit getrusage getsid
    gettid getuid ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self pidfd_open
    pidfd_send_signal prctl prlimit64 ptrace restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp set_robust_list
    set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setpgid setpriority setregid setresgid setresuid
    setreuid setrlimit setsid setuid sigaltstack sysinfo tgkill times tkill uname unshare uprobe uretprobe vfork wait4
    waitid personality
"""  # the kernel itself has a probed program call uprobe and uretprobe
_TALKING: Final = """
    accept accept4 bind connect futex futex_requeue futex_wait futex_waitv futex_wake getpeername getsockname getsockopt
    listen mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd recvfrom
    recvmmsg recvmsg semctl semget semop semtimedop sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt shmget
    shutdown socket socketpair
"""
_TIME: Final = """
    adjtimex alarm clock_adjtime clock_getres clock_gettime clock_nanosleep getitimer getrandom gettimeofday nanosleep
    setitimer time timer_create timer_delete timer_getoverrun timer_gettime timer_settime
"""

ALLOWED: Final = frozenset(f"{_FILES}{_WAITING}{_MEMORY}{_PROCESSES}{_TALKING}{_TIME}".split())

# Answered as by a kernel without them: gone for years, or so new and special that everybody has another way. Linux AIO
# is here because its requests are counted for the whole machine alone (fs.aio-max-nr): one task could take them all.
# Databases fall back to threads. `cachestat` says which pages of a file others have read. What names an attribute in a
# structure (`setxattrat`) has an older call beside it.
_ABSENT: Final = """
    _sysctl afs_syscall cachestat create_module epoll_ctl_old epoll_wait_old file_getattr file_setattr
    get_kernel_syms getpmsg io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit listmount listns
    lsm_get_self_attr lsm_list_modules lsm_set_self_attr modify_ldt nfsservctl putpmsg query_module removexattrat
    security set_mempolicy_home_node setxattrat statmount sysfs tuxcall ustat vserver
"""
ABSENT: Final = frozenset(_ABSENT.split())
