/* pid 1 of a sandbox's pid namespace, outside every snapshot. It starts init as pid 2 (`keeper`), or waits for a
 * restored tree whose root becomes pid 2 and its child when CRIU exits (`hold`); `init` is pid 2 itself, for a launcher
 * that must put it into cgroups of its own before. It ends as pid 2 ends, and with it,
 * by the kernel's hand, everything in the namespace.
 */
#define _GNU_SOURCE
#include "init.h"
#include <stdbool.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { INIT_PID = 2, BROKEN = 125 };

const int FORWARDED[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, 0};

static void close_all_but(int kept)
{
    int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3 && null >= 0; fd++)
        dup2(null, fd);
    if (kept > 3)
        syscall(SYS_close_range, 3, kept - 1, 0);
    syscall(SYS_close_range, kept < 3 ? 3 : kept + 1, ~0u, 0);
}

static int keep(const sigset_t *set)
{
    for (;;) {
        /* First, for what ended before SIGCHLD was blocked: the launcher starts init before it becomes us. */
        int status;
        for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
            if (pid == INIT_PID)
                return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        int number = sigwaitinfo(set, NULL);
        if (number > 0 && number != SIGCHLD)
            kill(INIT_PID, number);
    }
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    if (argc == 3 && !strcmp(mode, "relay"))
        return run_relay(argv[2]);
    bool hold = !strcmp(mode, "hold"), init = !strcmp(mode, "init"), keeper = !strcmp(mode, "keeper");
    int ready = argc > 2 ? atoi(argv[2]) : -1;
    sigset_t set;
    if (argc > 3 || !(hold || init || keeper) || (argc > 2 && ready < 3) || getpid() != (init ? INIT_PID : 1)) {
        static const char usage[] = "usage, as pid 1 of a pid namespace: init keeper|hold [READY_FD]; as pid 2: init init [READY_FD]\n";
        return write(2, usage, sizeof usage - 1) < 0 ? BROKEN : BROKEN;
    }
    setsid();
    close_all_but(ready);
    sigemptyset(&set);
    for (const int *number = FORWARDED; *number; number++)
        sigaddset(&set, *number);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGCHLD, SIG_DFL);
    if (hold) {
        dprintf(ready, "0 0\n");
        close(ready);
        return keep(&set);
    }
    fcntl(ready, F_SETFD, FD_CLOEXEC);
    if (init)
        return run_init(ready);
    pid_t pid = fork();
    if (pid == 0)
        return run_init(ready);
    close(ready);
    if (pid != INIT_PID) /* a restore could not take the number back */
        return BROKEN;
    return keep(&set);
}
