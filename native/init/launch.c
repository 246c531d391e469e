/* thawbox-launch: makes the shell of a sandbox, and starts a program inside one.
 *
 *   thawbox-launch shell PLAN_FD STATUS_FD GO_FD
 *       Carries out a plan (see struct op below): joins cgroups, makes namespaces, mounts, drops privileges and
 *       becomes pid 1 of the new pid namespace. Writes "pid N\n" (host pid of that pid 1) to STATUS_FD as soon as
 *       it exists, and "error TEXT\n" for the first step that fails. init, which a `spawn` step starts, then says
 *       there how its own start went; end of file with no error means that every program runs. The `wait` step
 *       reads one byte from GO_FD.
 *
 *   thawbox-launch enter NS_PID PIDS_ABOVE EXE_FD RUN_FD CGROUP_PROCS... -- ARGV...
 *       Joins the cgroups, enters every namespace of NS_PID but ipc and user, and runs the program open at EXE_FD
 *       as a child inside the pid namespace, whose next pid is set above PIDS_ABOVE (0: left alone). The program finds the
 *       directory RUN_FD as descriptor 1000 (our criu keeps its feature cache there). Exits with the program's
 *       status. The child dies with us, so that killing us is enough.
 *
 * A plan may come in two parts: the step `rest` says "waiting\n" on STATUS_FD, then reads what follows from GO_FD to its
 * end. So a shell can be kept ready before it is known whose it will be; it ends when its maker does.
 *
 * The plan is a sequence of NUL-terminated fields: a step's name, then its arguments. Steps run in order; those
 * before `unshare` in the caller's namespaces, the rest in pid 1. Sources of bind mounts are opened before `pivot`
 * and attached after it, so that no symbolic link in a hostile rootfs can name a path of the host.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PLAN_LIMIT (256 * 1024)
#define MAX_BINDS 128
#define MAX_TREES 16
#define RUN_DIRECTORY_FD 1000 /* RUNDIR=/proc/self/fd/1000 in our build of criu */

/* Newer than some libc headers; numbers are the same on every architecture. */
#ifndef CLONE_NEWCGROUP
#define CLONE_NEWCGROUP 0x02000000
#endif
#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif
#define SYS_CLONE3 435
#define SYS_OPEN_TREE 428
#define SYS_MOVE_MOUNT 429
#define SYS_MOUNT_SETATTR 442
#define TREE_CLONE 1
#define TREE_CLOEXEC O_CLOEXEC
#define RECURSIVE 0x8000 /* AT_RECURSIVE */
#define MOVE_F_EMPTY_PATH 0x4
#define ATTR_RDONLY 0x1
#define ATTR_NOSUID 0x2
#define ATTR_NODEV 0x4

struct mount_attr_v0 {
	unsigned long long set, clear, propagation, userns_fd;
};

static int status_fd = -1, go_fd = -1;
static const char *clock_offsets; /* what the next `unshare` writes into its new time namespace */
static int binds[MAX_BINDS], bind_count;
static int trees[MAX_TREES], tree_count;
static const char *step = "start", *subject = "";

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
	char text[1024];
	int saved = errno, length;
	va_list args;

	va_start(args, format);
	length = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (status_fd >= 0)
		dprintf(status_fd, "error %s %s: %.*s: %s\n", step, subject, length, text, strerror(saved));
	else
		dprintf(2, "thawbox-launch: %s %s: %s: %s\n", step, subject, text, strerror(saved));
	_exit(125);
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		fail("cannot write %s", path);
	close(fd);
}

/* --- steps ------------------------------------------------------------------------------------------------- */

static void do_cgroup(char **a) { write_file(a[0], "0"); }

static void do_tree(char **a)
{
	if (tree_count == MAX_TREES)
		errno = E2BIG, fail("too many");
	trees[tree_count] = open(a[0], O_WRONLY | O_CLOEXEC);
	if (trees[tree_count++] < 0)
		fail("cannot open");
}

static void do_clock(char **a) { clock_offsets = a[0]; }

static bool joined; /* the plan entered a placeholder: a forked pid is a number of its namespace, not the host's */

/* Writes WORD and our pid as the host counts it: /proc still is the host's, whatever pid namespace we are in. */
static void say_own_pid(const char *word)
{
	char own[32];
	ssize_t length = readlink("/proc/self", own, sizeof(own) - 1);

	if (length <= 0)
		fail("cannot read /proc/self");
	dprintf(status_fd, "%s %.*s\n", word, (int)length, own);
}

/* pid of a process in a placeholder: the shell has its network and host name, and its pid namespace is made below the
 * placeholder's, so that no pid of the tree is ever taken. Only a process that lives in a pid namespace can make one
 * below it: hence the child, which is our caller's to reap. */
static void do_join(char **a)
{
	static const char *const kinds[] = { "net", "uts", "pid" };
	char path[64];
	int fds[3];
	pid_t pid;

	for (int i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), "/proc/%s/ns/%s", a[0], kinds[i]);
		fds[i] = open(path, O_RDONLY | O_CLOEXEC);
		if (fds[i] < 0)
			fail("cannot open namespace %s", kinds[i]);
	}
	for (int i = 0; i < 3; i++) {
		if (setns(fds[i], 0))
			fail("cannot enter namespace %s", kinds[i]);
		close(fds[i]);
	}
	pid = (pid_t)syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
	if (pid < 0)
		fail("fork");
	if (pid > 0)
		_exit(0);
	say_own_pid("helper");
	joined = true;
}

static void do_unshare(char **a)
{
	pid_t pid;

	if (unshare((int)strtoul(a[0], NULL, 0)))
		fail("not permitted");
	if (clock_offsets) /* only possible before the first process is in there */
		write_file("/proc/self/timens_offsets", clock_offsets);
	/* CLONE_PARENT: pid 1 becomes a child of our caller, who can then reap it. In a placeholder, whose end waits for
	 * every process in it to be reaped, that must not depend on somebody outside: we end, and its pid 1 inherits. */
	pid = (pid_t)syscall(SYS_clone, (joined ? 0 : CLONE_PARENT) | SIGCHLD, 0, 0, 0, 0);
	if (pid < 0)
		fail("fork");
	if (pid > 0) {
		if (!joined)
			dprintf(status_fd, "pid %d\n", pid);
		_exit(0);
	}
	if (joined)
		say_own_pid("pid");
	if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
		fail("make mounts private");
	setsid();
}

static void run_plan(char *plan, size_t length);
static size_t read_plan(int fd, char *plan);

static void do_rest(char **a)
{
	static char plan[PLAN_LIMIT + 1];
	size_t length;

	(void)a;
	dprintf(status_fd, "waiting\n");
	length = read_plan(go_fd, plan);
	close(go_fd);
	run_plan(plan, length);
}

static void do_retime(char **a) /* offsets: a new time namespace for ourselves, who have seen one already */
{
	int fd;

	if (unshare(CLONE_NEWTIME))
		fail("not permitted");
	write_file("/proc/self/timens_offsets", a[0]);
	fd = open("/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, CLONE_NEWTIME))
		fail("cannot enter");
	close(fd);
}

static void do_wait(char **a)
{
	char byte;

	(void)a;
	if (read(go_fd, &byte, 1) != 1)
		errno = ECANCELED, fail("the caller gave up");
}

static void do_hostname(char **a)
{
	if (sethostname(a[0], strlen(a[0])))
		fail("sethostname");
}

static void do_loopback(char **a)
{
	struct ifreq request = { .ifr_flags = IFF_UP | IFF_RUNNING };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	(void)a;
	strcpy(request.ifr_name, "lo");
	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request))
		fail("loopback up");
	close(fd);
}

static void make_target(const char *path, mode_t type)
{
	char partial[4096];
	size_t length = strlen(path);
	struct stat found;

	if (length >= sizeof(partial))
		errno = ENAMETOOLONG, fail("target");
	if (!stat(path, &found))
		return;
	memcpy(partial, path, length + 1);
	for (size_t i = 1; i < length; i++)
		if (partial[i] == '/') {
			partial[i] = 0;
			if (mkdir(partial, 0755) && errno != EEXIST)
				fail("cannot make %s", partial);
			partial[i] = '/';
		}
	if (type == S_IFDIR) {
		if (mkdir(path, 0755) && errno != EEXIST)
			fail("cannot make %s", path);
	} else {
		int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
		if (fd < 0)
			fail("cannot make %s", path);
		close(fd);
	}
}

static void do_mount(char **a) /* type target flags options */
{
	if (mount(a[0], a[1], a[0], strtoul(a[2], NULL, 0), a[3]))
		fail("mount");
}

static void do_source(char **a) /* path: opens a bind source; attached by the `bind` of the same order */
{
	if (bind_count == MAX_BINDS)
		errno = E2BIG, fail("too many bind mounts");
	binds[bind_count] = (int)syscall(SYS_OPEN_TREE, AT_FDCWD, a[0], TREE_CLONE | TREE_CLOEXEC | RECURSIVE);
	if (binds[bind_count++] < 0)
		fail("cannot open the source of a mount");
}

static void do_bind(char **a) /* index target attributes(octal mask of ATTR_*) */
{
	int fd = binds[atoi(a[0])];
	struct mount_attr_v0 attributes = { .set = strtoul(a[2], NULL, 0) };
	struct stat source;

	if (fstat(fd, &source))
		fail("source");
	make_target(a[1], source.st_mode & S_IFMT);
	if (attributes.set &&
	    syscall(SYS_MOUNT_SETATTR, fd, "", AT_EMPTY_PATH | RECURSIVE, &attributes, sizeof(attributes)))
		fail("mount attributes");
	if (syscall(SYS_MOVE_MOUNT, fd, "", AT_FDCWD, a[1], MOVE_F_EMPTY_PATH))
		fail("attach");
	close(fd);
}

static void do_pivot(char **a)
{
	if (chdir(a[0]) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
		fail("pivot_root");
}

static void set_attributes(const char *path, unsigned long long set)
{
	struct mount_attr_v0 attributes = { .set = set };

	if (syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path, 0, &attributes, sizeof(attributes)))
		fail("mount attributes of %s", path);
}

static int clone_tree(const char *path)
{
	return (int)syscall(SYS_OPEN_TREE, AT_FDCWD, path, TREE_CLONE | TREE_CLOEXEC | RECURSIVE);
}

static void attach(int fd, const char *path)
{
	if (fd < 0 || syscall(SYS_MOVE_MOUNT, fd, "", AT_FDCWD, path, MOVE_F_EMPTY_PATH))
		fail("attach at %s", path);
	close(fd);
}

static void do_writable(char **a) /* a path that stays writable when the root becomes read-only */
{
	make_target(a[0], S_IFDIR);
	attach(clone_tree(a[0]), a[0]);
}

static void do_readonly(char **a) /* path: a read-only view of itself; nothing where there is none */
{
	if (access(a[0], F_OK))
		return;
	attach(clone_tree(a[0]), a[0]);
	set_attributes(a[0], ATTR_RDONLY);
}

static void do_seal(char **a) /* mount point: becomes read-only as it is */
{
	set_attributes(a[0], ATTR_RDONLY);
}

static void do_mask(char **a) /* path: hidden, if there is one */
{
	struct stat found;

	if (stat(a[0], &found))
		return;
	if (S_ISDIR(found.st_mode)) {
		if (mount("tmpfs", a[0], "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=0,nr_inodes=1"))
			fail("mask");
	} else {
		attach(clone_tree("/dev/null"), a[0]);
	}
}

static void do_capabilities(char **a) /* mask in hexadecimal */
{
	unsigned long long keep = strtoull(a[0], NULL, 16);
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct set[2] = { { 0 }, { 0 } };

	for (int cap = 0; cap < 64; cap++)
		if (!(keep >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) && errno != EINVAL)
			fail("bounding set, capability %d", cap);
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
		fail("ambient set");
	set[0].effective = set[0].permitted = (unsigned)keep;
	set[1].effective = set[1].permitted = (unsigned)(keep >> 32);
	if (syscall(SYS_capset, &header, set))
		fail("capset");
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		fail("no_new_privs");
}

static void do_seccomp(char **a) /* inherited descriptor of a file that holds a raw BPF program */
{
	static struct sock_filter filter[BPF_MAXINSNS];
	struct sock_fprog program = { .filter = filter };
	ssize_t length = pread(atoi(a[0]), filter, sizeof(filter), 0);

	if (length <= 0 || length % (ssize_t)sizeof(*filter))
		errno = EINVAL, fail("not a BPF program");
	close(atoi(a[0]));
	program.len = (unsigned short)(length / (ssize_t)sizeof(*filter));
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
		fail("seccomp");
}

/* Nothing of the host may be open in a sandbox: only the status pipe, which closes itself on exec. */
static void close_others(void)
{
	for (int fd = 0; fd < 1024; fd++)
		if (fd != status_fd)
			close(fd);
	for (int fd = 0; fd < 3; fd++)
		if (open("/dev/null", O_RDWR) != fd)
			errno = EBADF, fail("standard streams");
}

static void do_spawn(char **a) /* path, argument: a child in the tree's cgroups, told the number of STATUS_FD */
{
	char number[16];
	char *argv[] = { a[0], a[1], number, NULL }, *envp[] = { NULL };
	pid_t pid = fork();

	snprintf(number, sizeof(number), "%d", status_fd);

	if (pid < 0)
		fail("fork");
	if (pid > 0)
		return;
	for (int i = 0; i < tree_count; i++)
		if (write(trees[i], "0", 1) != 1)
			fail("join the tree's cgroup");
	close_others();
	fcntl(status_fd, F_SETFD, 0);
	execve(a[0], argv, envp);
	fail("exec");
}

static void do_become(char **a) /* path, argument */
{
	char *argv[] = { a[0], a[1], NULL }, *envp[] = { NULL };

	close_others();
	execve(a[0], argv, envp);
	fail("exec");
}

static const struct op {
	const char *name;
	int arguments;
	void (*run)(char **);
} ops[] = {
	{ "cgroup", 1, do_cgroup },	{ "tree", 1, do_tree },		{ "unshare", 1, do_unshare },
	{ "clock", 1, do_clock },	{ "rest", 0, do_rest },		{ "retime", 1, do_retime },
	{ "join", 1, do_join },
	{ "wait", 0, do_wait },		{ "hostname", 1, do_hostname }, { "loopback", 0, do_loopback },
	{ "mount", 4, do_mount },	{ "source", 1, do_source },	{ "bind", 3, do_bind },
	{ "pivot", 1, do_pivot },	{ "writable", 1, do_writable }, { "readonly", 1, do_readonly },
	{ "seal", 1, do_seal },		{ "mask", 1, do_mask },		{ "capabilities", 1, do_capabilities },
	{ "seccomp", 1, do_seccomp },	{ "spawn", 2, do_spawn },	{ "become", 2, do_become },
};

static const struct op *find_op(const char *name)
{
	for (size_t i = 0; i < sizeof(ops) / sizeof(*ops); i++)
		if (!strcmp(ops[i].name, name))
			return &ops[i];
	errno = EINVAL;
	fail("no such step");
}

static void run_plan(char *plan, size_t length)
{
	char *cursor = plan, *end = plan + length;

	while (cursor < end) {
		char *arguments[4];
		const struct op *op;

		step = cursor, subject = "";
		op = find_op(cursor);
		cursor += strlen(cursor) + 1;
		for (int i = 0; i < op->arguments; i++) {
			if (cursor >= end)
				errno = EINVAL, fail("the plan ends early");
			arguments[i] = cursor;
			cursor += strlen(cursor) + 1;
		}
		if (op->arguments)
			subject = arguments[op->run == do_mount || op->run == do_bind];
		op->run(arguments);
	}
	errno = EINVAL;
	fail("the plan has no last step");
}

static size_t read_plan(int fd, char *plan)
{
	size_t length = 0;
	ssize_t got;

	while ((got = read(fd, plan + length, PLAN_LIMIT - length)) > 0)
		length += (size_t)got;
	if (got < 0 || !length || length == PLAN_LIMIT || plan[length - 1])
		errno = EINVAL, fail("unreadable plan");
	return length;
}

static int shell(char **argv)
{
	static char plan[PLAN_LIMIT + 1];
	size_t length;
	int plan_fd = atoi(argv[0]);

	status_fd = atoi(argv[1]);
	go_fd = atoi(argv[2]);
	if (fcntl(status_fd, F_SETFD, FD_CLOEXEC))
		fail("status descriptor");
	length = read_plan(plan_fd, plan);
	close(plan_fd);
	umask(0);
	run_plan(plan, length);
	return 0;
}

/* --- enter ------------------------------------------------------------------------------------------------- */

/* Forks with a pid of our choice, the first free one from `*wanted` on: in a fresh pid namespace an ordinary fork
 * would take pid 2, which belongs to the tree that is about to be restored. */
static pid_t fork_at(long *wanted)
{
	struct {
		unsigned long long flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
			set_tid_size, cgroup;
	} arguments = { .exit_signal = SIGCHLD, .set_tid_size = 1 };
	int set_tid;
	pid_t pid;

	arguments.set_tid = (unsigned long long)(unsigned long)&set_tid;
	for (long last = *wanted + 1024; *wanted < last; ++*wanted) {
		set_tid = (int)*wanted;
		pid = (pid_t)syscall(SYS_CLONE3, &arguments, sizeof(arguments));
		if (pid >= 0 || errno != EEXIST)
			return pid;
	}
	return -1;
}

static int enter(int argc, char **argv)
{
	long wanted = strtol(argv[1], NULL, 10);
	static const char *const kinds[] = { "cgroup", "time", "uts", "net", "pid", "mnt" };
	int fds[6], last_pid, exe = atoi(argv[2]), status, at = 4;
	char path[64], *envp[] = { "PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL };
	pid_t pid;

	step = "enter", subject = argv[0];
	for (int i = 0; i < 6; i++) {
		snprintf(path, sizeof(path), "/proc/%s/ns/%s", argv[0], kinds[i]);
		fds[i] = open(path, O_RDONLY | O_CLOEXEC);
		if (fds[i] < 0)
			fail("cannot open namespace %s", kinds[i]);
	}
	last_pid = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
	if (last_pid < 0)
		fail("cannot open ns_last_pid");
	for (; at < argc && strcmp(argv[at], "--"); at++)
		write_file(argv[at], "0");
	if (++at >= argc)
		errno = EINVAL, fail("no program");
	if (dup2(atoi(argv[3]), RUN_DIRECTORY_FD) < 0 || fcntl(exe, F_SETFD, FD_CLOEXEC))
		fail("descriptors");
	for (int i = 0; i < 6; i++)
		if (setns(fds[i], 0))
			fail("cannot enter namespace %s", kinds[i]);
	pid = wanted ? fork_at(&wanted) : fork();
	if (pid < 0)
		fail("cannot choose a pid");
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
		/* The pids of the tree must stay free for it while the program's own children run. */
		if (wanted && dprintf(last_pid, "%ld", wanted) < 0)
			fail("cannot set ns_last_pid");
		syscall(SYS_execveat, exe, "", argv + at, envp, AT_EMPTY_PATH);
		fail("exec");
	}
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			fail("wait");
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[1], "shell"))
		return shell(argv + 2);
	if (argc >= 8 && !strcmp(argv[1], "enter"))
		return enter(argc - 2, argv + 2);
	dprintf(2, "usage: thawbox-launch shell PLAN_FD STATUS_FD GO_FD\n"
		   "       thawbox-launch enter NS_PID PIDS_ABOVE EXE_FD RUN_FD CGROUP_PROCS... -- ARGV...\n");
	return 2;
}
