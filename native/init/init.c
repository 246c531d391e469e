/* pid 2 of a sandbox: root of the process tree that a snapshot holds.
 *
 * One thread, one poll loop, and only descriptors that CRIU can dump: files of the rootfs, pipes, ptys, unix sockets
 * and one signalfd. Nothing here blocks on a client, on the main program or on what a session starts.
 */
#define _GNU_SOURCE
#include "init.h"
#include "control.h"
#include "table.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CONFIG_LIMIT = 2 << 20 };

static struct pollfd polled[2 + CLIENT_LIMIT + 3 * (SESSION_LIMIT + 1)];
static int polled_count;

int watch(int fd, short events)
{
    if (fd < 0 || !events)
        return -1;
    polled[polled_count] = (struct pollfd){fd, events, 0};
    return polled_count++;
}

bool came(int slot) { return slot >= 0 && polled[slot].revents; }

/* Fill the poll set; returns when something is due without any descriptor's help. */
static int64_t watch_sessions(void)
{
    int64_t wake = INT64_MAX;
    for (int i = 0; i < session_count; i++) {
        struct session *s = sessions[i];
        bool closed = s->state == ENDED && !s->to_log; /* what comes now is its children's, and waits for the log */
        for (int j = 0; j < 2; j++) {
            struct stream *stream = &s->out[j];
            bool room = stream->ring.end - stream->ring.start < RING_SIZE;
            stream->slot = watch(closed ? -1 : stream->fd, room ? POLLIN : 0);
            wake = s->to_log && stream->flush_at && stream->flush_at < wake ? stream->flush_at : wake;
        }
        s->in_slot = watch(s->in_fd, s->in.end > s->in.start || s->in_end ? POLLOUT : 0);
        wake = s->state == ENDED && i > 0 && !s->client && s->forget_at < wake ? s->forget_at : wake;
    }
    return wake;
}

static void serve_sessions(int64_t now)
{
    for (int i = 0; i < session_count; i++) {
        struct session *s = sessions[i];
        for (int j = 0; j < 2; j++)
            if (came(s->out[j].slot) || (s->state == ENDING && s->out[j].left))
                session_read(s, j, now);
        if (came(s->in_slot))
            session_write(s);
        if (s->to_log && (line_due(&s->out[0], now) || line_due(&s->out[1], now)))
            session_log(s, now, false);
        session_settle(s);
    }
}

static void take_signals(int signals)
{
    struct signalfd_siginfo came_in;
    while (read(signals, &came_in, sizeof came_in) == sizeof came_in)
        if (came_in.ssi_signo != SIGCHLD && sessions[0]->state == RUNNING)
            kill(sessions[0]->pid, (int)came_in.ssi_signo);
}

static void serve(int signals)
{
    while (sessions[0]->state != ENDED) {
        polled_count = 0;
        watch(signals, POLLIN);
        control_watch();
        int64_t wake = watch_sessions(), now = clock_ms();
        int64_t rest = wake <= now ? 0 : wake - now < KEEP_STATUS_MS ? wake - now : KEEP_STATUS_MS;
        struct timespec until = {.tv_sec = rest / 1000, .tv_nsec = rest % 1000 * 1000000};
        /* ppoll, which a dump does not wake (CRIU lets poll and epoll_wait return): an idle sandbox stays as it is */
        ppoll(polled, (nfds_t)polled_count, wake == INT64_MAX ? NULL : &until, NULL);
        now = clock_ms(); /* interrupted: nothing came, and the turn does no harm */
        take_signals(signals);
        reap(now);
        serve_sessions(now);
        control_serve();
        drop_forgotten(now);
    }
}

static void write_exit(int status, int signal_number, int cause, const char *why)
{
    char text[512], safe[256];
    size_t length = 0;
    for (; why[length] && length < sizeof safe - 1; length++)
        safe[length] = why[length] < ' ' || why[length] > '~' || strchr("\"\\", why[length]) ? '?' : why[length];
    safe[length] = 0;
    int size = snprintf(text, sizeof text, "{\"status\": %d, \"signal\": %d, \"errno\": %d, \"cause\": \"%s\", \"time_ns\": %llu}\n",
                        status, signal_number, cause, safe, (unsigned long long)wall_clock());
    int fd = open("/.thawbox/exit.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd >= 0 && write(fd, text, (size_t)size) == size)
        rename("/.thawbox/exit.new", "/.thawbox/exit");
}

static int fail_start(int ready, int code, int cause, const char *why)
{
    write_exit(code, 0, cause, why);
    dprintf(ready, "%d %s\n", code, why);
    return code;
}

static bool read_config(void)
{
    static uint8_t *bytes; /* the strings in `config` point into it for as long as we live */
    struct stat about;
    int fd = open("/.thawbox/config", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fstat(fd, &about) < 0 || about.st_size > CONFIG_LIMIT || !(bytes = malloc((size_t)about.st_size + 1)))
        return false;
    ssize_t got = read(fd, bytes, (size_t)about.st_size);
    close(fd);
    return got == about.st_size && parse_config(bytes, (size_t)got, &config);
}

static int open_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    for (const int *number = FORWARDED; *number; number++)
        sigaddset(&set, *number);
    sigaddset(&set, SIGCHLD);
    signal(SIGPIPE, SIG_IGN);
    sigprocmask(SIG_SETMASK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int run_init(int ready)
{
    struct failure failure;
    setsid();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_DUMPABLE, 1);
    umask(022);
    int signals = open_signals();
    if (signals < 0 || chdir("/") < 0 || (mkdir("/.thawbox/log", 0700) < 0 && errno != EEXIST))
        return fail_start(ready, 125, errno, "the sandbox's own directory cannot be used");
    if (!read_config())
        return fail_start(ready, 125, EINVAL, "the config is missing or damaged");
    unlink("/.thawbox/exit");
    log_open(config.log_bytes, config.log_files);
    if (!control_open())
        return fail_start(ready, 125, errno, "the control socket cannot be opened");
    config.main.flags = 0;
    struct session *main_program = start_session(&config.main, &failure);
    if (!main_program)
        return fail_start(ready, (int)failure.code, failure.cause, failure.text);
    dprintf(ready, "0 %d\n", (int)main_program->pid);
    close(ready);
    serve(signals);
    for (int i = 0; i < session_count; i++)
        if (sessions[i]->to_log)
            session_log(sessions[i], 0, true);
    int by_signal = exit_signal(main_program->status), code = exit_code(main_program->status);
    write_exit(code, by_signal, 0, "");
    control_close_all(BY_END);
    return by_signal ? 128 + by_signal : code;
}
