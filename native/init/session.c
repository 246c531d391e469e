#define _GNU_SOURCE
#include "session.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum { PARTIAL_LINE_MS = 100, PTY_REST = 256 << 10 };

struct ends { int in, out, err, pty; char slave[32]; }; /* the program's side */
struct report { int cause; char stage[8]; };            /* what a child writes that could not become the program */

static const char *const STAGES[] = {"rlimit", "tty", "user", "cwd", "exec"};

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* The new environment: the main program's, with the request's entries put over it. */
static char **merged_environment(char **under, char **over)
{
    size_t count = 0, extra = 0;
    while (under[count])
        count++;
    while (over[extra])
        extra++;
    char **merged = calloc(count + extra + 1, sizeof *merged);
    if (!merged)
        return over;
    memcpy(merged, under, count * sizeof *merged);
    for (; *over; over++) {
        size_t at = 0, name = (size_t)(strchr(*over, '=') - *over) + 1;
        while (at < count && strncmp(merged[at], *over, name) != 0)
            at++;
        merged[at] = *over;
        count += at == count;
    }
    return merged;
}

static bool take_terminal(const struct ends *ends, const struct request *request)
{
    struct winsize size = {.ws_row = request->rows, .ws_col = request->columns};
    int fd = open(ends->slave, O_RDWR | O_NOCTTY);
    if (fd < 0 || ioctl(fd, TIOCSCTTY, 0) < 0 || fchown(fd, request->uid, (gid_t)-1) < 0)
        return false;
    fchmod(fd, 0620);
    ioctl(fd, TIOCSWINSZ, &size);
    bool placed = dup2(fd, 0) == 0 && dup2(fd, 1) == 1 && dup2(fd, 2) == 2;
    if (fd > 2)
        close(fd);
    return placed;
}

static bool set_limits(const struct config *config)
{
    for (uint32_t i = 0; i < config->limit_count; i++) {
        struct rlimit limit = {config->limits[i].soft, config->limits[i].hard};
        if (setrlimit(config->limits[i].resource, &limit) < 0)
            return false;
    }
    return true;
}

static bool become_user(const struct request *request)
{
    bool no_change = request->group_count == 0 && getgroups(0, NULL) == 0; /* setgroups may be refused altogether */
    return (no_change || setgroups(request->group_count, request->groups) == 0) &&
           setresgid(request->gid, request->gid, request->gid) == 0 &&
           setresuid(request->uid, request->uid, request->uid) == 0;
}

/* In the child: become the program; returns the name of the step that failed, with errno set. */
static const char *become(const struct request *request, const struct config *config, const struct ends *ends)
{
    sigset_t none;
    sigemptyset(&none);
    setsid();
    for (int number = 1; number < 32; number++)
        signal(number, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (!set_limits(config))
        return STAGES[0];
    if (ends->pty >= 0 ? !take_terminal(ends, request)
                       : dup2(ends->in, 0) < 0 || dup2(ends->out, 1) < 0 || dup2(ends->err, 2) < 0)
        return STAGES[1];
    if (!become_user(request))
        return STAGES[2];
    if (chdir(request->cwd) < 0)
        return STAGES[3];
    extern char **environ;
    environ = request == &config->main ? request->env : merged_environment(config->main.env, request->env);
    execvp(request->argv[0], request->argv);
    return STAGES[4];
}

static bool open_pipe(int *read_end, int *write_end, bool we_read)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0)
        return false;
    *read_end = fds[0];
    *write_end = fds[1];
    return fcntl(we_read ? fds[0] : fds[1], F_SETFL, O_NONBLOCK) == 0;
}

static bool open_pty(struct session *s, struct ends *ends)
{
    int unlocked = 0;
    unsigned number;
    ends->pty = s->out[0].fd = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (ends->pty < 0 || ioctl(ends->pty, TIOCSPTLCK, &unlocked) < 0 || ioctl(ends->pty, TIOCGPTN, &number) < 0)
        return false;
    snprintf(ends->slave, sizeof ends->slave, "/dev/pts/%u", number);
    s->in_fd = fcntl(ends->pty, F_DUPFD_CLOEXEC, 3);
    return s->in_fd >= 0;
}

static bool open_streams(struct session *s, struct ends *ends)
{
    if (s->flags & EXEC_TTY)
        return open_pty(s, ends);
    if (s->flags & EXEC_STDIN ? !open_pipe(&ends->in, &s->in_fd, false)
                              : (ends->in = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0)
        return false;
    return open_pipe(&s->out[0].fd, &ends->out, true) && open_pipe(&s->out[1].fd, &ends->err, true);
}

static bool failed(struct failure *failure, int cause, const char *stage, const char *object)
{
    bool missing = strcmp(stage, STAGES[4]) == 0 && cause == ENOENT;
    failure->cause = cause;
    failure->code = missing ? 127 : 126;
    snprintf(failure->text, sizeof failure->text, "%s %.200s: %s", stage, object, strerror(cause));
    return false;
}

/* Fork and wait until the child is the program (its end of the pipe closes) or reports why not. */
static bool launch(struct session *s, const struct request *request, const struct config *config,
                   const struct ends *ends, struct failure *failure)
{
    int from_child, to_parent;
    struct report report = {0};
    if (!open_pipe(&from_child, &to_parent, true))
        return failed(failure, errno, "pipe", s->name);
    fcntl(from_child, F_SETFL, 0);
    s->pid = fork();
    if (s->pid == 0) {
        const char *stage = become(request, config, ends);
        report.cause = errno;
        memcpy(report.stage, stage, strlen(stage));
        _exit(write(to_parent, &report, sizeof report) == sizeof report ? 127 : 126);
    }
    int cause = errno;
    ssize_t got = 0;
    close(to_parent);
    if (s->pid > 0)
        while ((got = read(from_child, &report, sizeof report)) < 0 && errno == EINTR)
            ;
    close(from_child);
    if (s->pid < 0)
        return failed(failure, cause, "fork", s->name);
    if (got == 0)
        return true;
    while (waitpid(s->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    report.stage[sizeof report.stage - 1] = 0;
    return failed(failure, report.cause, report.stage, strcmp(report.stage, "cwd") ? request->argv[0] : request->cwd);
}

bool session_start(struct session *s, const struct request *request, const struct config *config,
                   struct failure *failure)
{
    struct ends ends = {-1, -1, -1, -1, ""};
    s->flags = request->flags;
    s->to_log = s->id == 0 || s->flags & EXEC_DETACH;
    s->in_fd = s->out[0].fd = s->out[1].fd = -1;
    snprintf(s->name, sizeof s->name, "%s", request->argv[0]);
    bool ready = ring_ready(&s->out[0].ring) && ring_ready(&s->out[1].ring) && ring_ready(&s->in);
    bool started = ready && open_streams(s, &ends);
    if (!started)
        failed(failure, errno, "streams of", s->name);
    started = started && launch(s, request, config, &ends, failure);
    close_fd(&ends.in);
    close_fd(&ends.out);
    close_fd(&ends.err);
    if (!started) {
        session_close_in(s);
        session_close_out(&s->out[0]);
        session_close_out(&s->out[1]);
    }
    return started;
}

void session_resize(struct session *s, uint16_t rows, uint16_t columns)
{
    struct winsize size = {.ws_row = rows, .ws_col = columns};
    if (s->flags & EXEC_TTY && s->out[0].fd >= 0)
        ioctl(s->out[0].fd, TIOCSWINSZ, &size);
}

void session_close_in(struct session *s)
{
    close_fd(&s->in_fd);
    s->in.start = s->in.end; /* input that nobody will read counts as taken, so the client is never held up */
    s->in_news = true;
    ring_free(&s->in);
}

void session_close_out(struct stream *stream)
{
    close_fd(&stream->fd);
    stream->left = 0;
    if (stream->ring.start == stream->ring.end)
        ring_free(&stream->ring);
}

bool line_due(const struct stream *stream, int64_t now)
{
    bool clock_went_back = stream->flush_at > now + PARTIAL_LINE_MS; /* restored where no time namespace keeps it */
    return stream->flush_at && (stream->flush_at <= now || clock_went_back);
}

void session_log(struct session *s, int64_t now, bool flush)
{
    for (int i = 0; i < 2; i++) {
        struct stream *stream = &s->out[i];
        bool due = flush || stream->fd < 0 || line_due(stream, now);
        uint64_t before = stream->ring.start;
        log_drain(s->id, (uint8_t)(LOG_STDOUT + i), &stream->ring, due);
        if (stream->ring.start == stream->ring.end)
            stream->flush_at = 0;
        else if (stream->flush_at == 0 || stream->ring.start != before)
            stream->flush_at = now + PARTIAL_LINE_MS;
        if (stream->fd < 0)
            ring_free(&stream->ring);
    }
}

void session_read(struct session *s, int which, int64_t now)
{
    struct stream *stream = &s->out[which];
    size_t room;
    if (stream->fd < 0)
        return;
    uint8_t *at = ring_free_part(&stream->ring, &room);
    if (s->state == ENDING && room > stream->left)
        room = (size_t)stream->left;
    if (room == 0)
        return;
    ssize_t got = read(stream->fd, at, room);
    if (got > 0) {
        stream->ring.end += (uint64_t)got;
        stream->left -= s->state == ENDING ? (uint64_t)got : 0;
    } else if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
        stream->left = errno == EINTR ? stream->left : 0;
    } else {
        session_close_out(stream); /* a pty master says EIO when the last slave has closed */
    }
    if (s->to_log)
        session_log(s, now, false);
}

void session_write(struct session *s)
{
    size_t length;
    if (s->in_fd < 0)
        return;
    uint8_t *at = ring_held_part(&s->in, s->in.start, &length);
    ssize_t put = length ? write(s->in_fd, at, length) : 0;
    if (put > 0) {
        s->in.start += (uint64_t)put;
        s->in_news = true;
    } else if (put < 0 && errno != EAGAIN && errno != EINTR) {
        session_close_in(s);
        return;
    }
    if (s->in_end && s->in.start == s->in.end) {
        if (s->flags & EXEC_TTY && write(s->in_fd, "\4", 1) < 0 && errno == EAGAIN)
            return; /* a terminal has no end: its end-of-file character stands for it */
        session_close_in(s);
    }
}

void session_reaped(struct session *s, int status)
{
    s->status = status;
    s->state = ENDING;
    for (int i = 0; i < 2; i++) {
        int waiting = 0;
        if (s->out[i].fd >= 0 && !(s->flags & EXEC_TTY))
            ioctl(s->out[i].fd, FIONREAD, &waiting); /* what it wrote; later bytes are those of its children */
        s->out[i].left = s->flags & EXEC_TTY ? PTY_REST : (uint64_t)waiting;
    }
}

void session_settle(struct session *s)
{
    if (s->state != ENDING || (s->out[0].fd >= 0 && s->out[0].left) || (s->out[1].fd >= 0 && s->out[1].left))
        return;
    s->state = ENDED;
    session_close_in(s);
    if (s->flags & EXEC_TTY)
        session_close_out(&s->out[0]);
}
