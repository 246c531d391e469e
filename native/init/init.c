/* pid 2 of a sandbox: root of the process tree that a snapshot holds.
 *
 * One thread, one poll loop, and only descriptors that CRIU can dump: files of the rootfs, pipes, ptys, unix sockets
 * and one signalfd. Nothing here blocks on a client, on the main program or on what a session starts.
 */
#define _GNU_SOURCE
#include "init.h"
#include "session.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    PROTOCOL = 1, SESSION_LIMIT = 256, CLIENT_LIMIT = 128, KEEP_STATUS_MS = 60000, OUTPUT_CHUNK = 16 << 10,
    OUT_SIZE = 64 << 10, REPLY_ROOM = 24 << 10, CONFIG_LIMIT = 2 << 20,
    PIECES = 16, /* of one client's frames in one turn, so that no client holds up the others */
};
enum { BY_QUIESCE = 1, BY_OTHER_CLIENT = 2, BY_END = 3 };

struct client {
    int fd, slot;
    uint8_t header[FRAME_HEADER], *payload;
    uint32_t got, length;       /* bytes of the frame that have come, bytes of its payload */
    struct session *session;    /* what it is attached to */
    bool gone;
    uint32_t out_start, out_end;
    uint8_t out[OUT_SIZE];
};

static struct config config;
static struct session *sessions[SESSION_LIMIT + 1]; /* the first is the main program */
static struct client *clients[CLIENT_LIMIT];
static int session_count, client_count, listener = -1;
static uint32_t last_id;

static int64_t clock_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int exit_code(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 0; }
static int exit_signal(int status) { return WIFSIGNALED(status) ? WTERMSIG(status) : 0; }

/* ---- what is sent to a client ---- */

static void flush(struct client *c)
{
    while (c->out_start < c->out_end) {
        ssize_t put = send(c->fd, c->out + c->out_start, c->out_end - c->out_start, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (put <= 0) {
            c->gone = c->gone || (errno != EAGAIN && errno != EINTR);
            return;
        }
        c->out_start += (uint32_t)put;
    }
    c->out_start = c->out_end = 0;
}

/* A frame is only begun where REPLY_ROOM is left (see `may_read`), so it always fits. */
static uint8_t *frame(struct client *c, uint8_t type, uint32_t length)
{
    uint8_t *at = c->out + c->out_end;
    c->out_end += FRAME_HEADER + length;
    return put_header(at, type, length);
}

static void send_failure(struct client *c, int cause, uint32_t code, const char *text)
{
    uint32_t length = (uint32_t)strlen(text);
    uint8_t *at = put_u32(put_u32(frame(c, FAILED, 8 + length), (uint32_t)cause), code);
    memcpy(at, text, length);
}

static void send_detached(struct client *c, uint8_t reason)
{
    put_u64(put_u8(frame(c, DETACHED, 9), reason), c->session ? c->session->in.end : 0);
}

static void detach(struct client *c)
{
    if (c->session) {
        c->session->client = NULL;
        c->session->forget_at = clock_ms() + KEEP_STATUS_MS;
    }
    c->session = NULL;
}

static void attach(struct client *c, struct session *s)
{
    if (s->client) {
        send_detached(s->client, BY_OTHER_CLIENT);
        flush(s->client);
        s->client->gone = true;
        detach(s->client);
    }
    detach(c);
    c->session = s;
    s->client = c;
    s->exit_sent = false;
    s->in_news = true;
}

/* Next piece of what the attached client has not been sent yet; false when there is none. */
static bool send_news(struct client *c, struct session *s)
{
    if (s->in_news) {
        s->in_news = false;
        put_u64(put_u64(frame(c, STDIN_ACK, 16), s->in.end), s->in.start);
        return true;
    }
    for (int i = 0; i < 2 && !s->to_log; i++) {
        struct stream *stream = &s->out[i];
        size_t length;
        if (stream->sent == stream->ring.end)
            continue;
        uint8_t *from = ring_held_part(&stream->ring, stream->sent, &length);
        length = length < OUTPUT_CHUNK ? length : OUTPUT_CHUNK;
        uint8_t *at = put_u8(frame(c, OUTPUT, 9 + (uint32_t)length), (uint8_t)(i + 1));
        memcpy(put_u64(at, stream->sent), from, length);
        stream->sent += length;
        return true;
    }
    if (s->state != ENDED || s->exit_sent)
        return false;
    s->exit_sent = true;
    put_u32(put_u32(frame(c, EXIT, 8), (uint32_t)exit_code(s->status)), (uint32_t)exit_signal(s->status));
    return true;
}

static void feed(struct client *c)
{
    flush(c);
    while (!c->gone && c->out_end == 0 && c->session && send_news(c, c->session))
        flush(c);
}

/* ---- sessions ---- */

static struct session *find(uint32_t id)
{
    for (int i = 0; i < session_count; i++)
        if (sessions[i]->id == id && sessions[i]->state != FORGOTTEN)
            return sessions[i];
    return NULL;
}

/* Its status was fetched or has waited long enough. What its children still write goes to the log from here on. */
static void forget(struct session *s, bool fetched)
{
    if (s->client)
        detach(s->client);
    for (int i = 0; i < 2 && fetched && !s->to_log; i++)
        s->out[i].ring.start = s->out[i].ring.end;
    s->state = FORGOTTEN;
    s->to_log = true;
    session_log(s, clock_ms(), false);
}

static void drop_forgotten(int64_t now)
{
    for (int i = 1; i < session_count; i++) {
        struct session *s = sessions[i];
        if (s->state == ENDED && !s->client && s->forget_at <= now)
            forget(s, false);
        if (s->state != FORGOTTEN || s->out[0].fd >= 0 || s->out[1].fd >= 0)
            continue;
        session_log(s, now, true);
        free(s);
        sessions[i--] = sessions[--session_count];
    }
}

static struct session *start(const struct request *request, struct failure *failure)
{
    *failure = (struct failure){EAGAIN, 126, "too many sessions are open in this sandbox"};
    struct session *s = session_count <= SESSION_LIMIT ? calloc(1, sizeof *s) : NULL;
    if (!s)
        return NULL;
    s->id = session_count ? ++last_id : 0;
    s->forget_at = INT64_MAX;
    if (!session_start(s, request, &config, failure)) {
        free(s);
        return NULL;
    }
    return sessions[session_count++] = s;
}

/* ---- what clients ask for: each returns false when the frame makes no sense, which costs the client its line ---- */

static bool on_hello(struct client *c)
{
    uint8_t *at = put_u32(put_u32(frame(c, STATE, 25), PROTOCOL), (uint32_t)sessions[0]->pid);
    put_u64(put_u32(put_u32(put_u8(at, sessions[0]->state), (uint32_t)session_count - 1), last_id), log_end());
    return true;
}

static bool on_exec(struct client *c, struct reader *r)
{
    struct request request;
    struct failure failure;
    if (!parse_request(r, &request))
        return false;
    struct session *s = start(&request, &failure);
    if (!s) {
        send_failure(c, failure.cause, failure.code, failure.text);
    } else {
        put_u32(put_u32(frame(c, STARTED, 8), s->id), (uint32_t)s->pid);
        if (!(s->flags & EXEC_DETACH))
            attach(c, s);
    }
    free_request(&request);
    return true;
}

static bool on_attach(struct client *c, struct reader *r)
{
    uint32_t id = read_u32(r);
    uint64_t next[2] = {read_u64(r), read_u64(r)};
    struct session *s = id ? find(id) : NULL;
    if (r->bad)
        return false;
    if (!s) {
        send_failure(c, ESRCH, 0, "no such session");
        return true;
    }
    for (int i = 0; i < 2 && !s->to_log; i++) {
        struct ring *ring = &s->out[i].ring;
        if (next[i] == UINT64_MAX)
            next[i] = ring->start;
        if (next[i] < ring->start || next[i] > ring->end) {
            send_failure(c, ERANGE, 0, "that output is not kept here");
            return true;
        }
    }
    for (int i = 0; i < 2 && !s->to_log; i++)
        s->out[i].sent = s->out[i].ring.start = next[i];
    put_u32(put_u64(put_u64(frame(c, ATTACHED, 20), s->in.end), s->in.start), (uint32_t)s->pid);
    attach(c, s);
    return true;
}

static bool on_list(struct client *c)
{
    uint32_t count = 0, each = 61;
    uint8_t *length_at = c->out + c->out_end + 1, *at = frame(c, SESSIONS, 0);
    for (int i = 1; i < session_count; i++) {
        struct session *s = sessions[i];
        if (s->state == FORGOTTEN)
            continue;
        at = put_u8(put_u8(put_u32(put_u32(at, s->id), (uint32_t)s->pid), s->flags), s->state);
        at = put_u8(at, s->client != NULL);
        at = put_u8(put_u8(at, (uint8_t)exit_code(s->status)), (uint8_t)exit_signal(s->status));
        memcpy(at, s->name, sizeof s->name);
        at += sizeof s->name;
        count++;
    }
    put_u32(length_at, count * each);
    c->out_end += count * each;
    return true;
}

static bool on_signal(struct client *c, struct reader *r)
{
    uint32_t id = read_u32(r), number = read_u32(r);
    struct session *s = find(id);
    if (r->bad || number > 64)
        return false;
    bool sent = s && s->state == RUNNING && kill(id ? -s->pid : s->pid, (int)number) == 0;
    if (sent)
        frame(c, DONE, 0);
    else
        send_failure(c, ESRCH, 0, "that program has ended");
    return true;
}

static bool on_stdin(struct session *s, struct reader *r)
{
    uint64_t offset = read_u64(r);
    if (r->bad || offset > s->in.end || s->in_end)
        return false;
    uint64_t known = s->in.end - offset, count = (uint64_t)(r->end - r->at);
    if (count <= known)
        return true; /* sent again after a lost connection */
    if (s->in_fd < 0) {
        s->in.start = s->in.end = offset + count;
        s->in_news = true;
        return true;
    }
    if (count - known > RING_SIZE - (s->in.end - s->in.start))
        return false;
    for (r->at += known; r->at < r->end;) {
        size_t room, rest = (size_t)(r->end - r->at);
        uint8_t *to = ring_free_part(&s->in, &room);
        room = room < rest ? room : rest;
        memcpy(to, r->at, room);
        r->at += room;
        s->in.end += room;
    }
    s->in_news = true;
    session_write(s);
    return true;
}

static bool on_ack(struct session *s, struct reader *r)
{
    uint8_t which = read_u8(r);
    uint64_t next = read_u64(r);
    if (r->bad || which > 2)
        return false;
    if (which == 0) {
        if (s->state == ENDED)
            forget(s, true);
        return true;
    }
    struct stream *stream = &s->out[which - 1];
    if (s->to_log || next < stream->ring.start || next > stream->sent)
        return false;
    stream->ring.start = next;
    return true;
}

static bool on_attached(struct client *c, uint8_t type, struct reader *r)
{
    struct session *s = c->session;
    if (type == STDIN)
        return on_stdin(s, r);
    if (type == ACK)
        return on_ack(s, r);
    if (type == RESIZE) {
        uint16_t rows = read_u16(r), columns = read_u16(r);
        session_resize(s, rows, columns);
        return !r->bad;
    }
    if (type != STDIN_END || read_u64(r) != s->in.end || r->bad)
        return false;
    s->in_end = true;
    session_write(s);
    return true;
}

/* Let go of every connection, so that the dump finds none that leads out of the sandbox. */
static void quiesce(uint8_t reason)
{
    for (int i = 0; i < client_count; i++) {
        send_detached(clients[i], reason);
        flush(clients[i]);
        clients[i]->gone = true;
    }
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0;)
        close(fd);
}

/* In a clone: whoever was attached is attached to the original, so nobody is left to answer to. */
static bool on_end_sessions(struct client *c)
{
    for (int i = 1; i < session_count; i++) {
        struct session *s = sessions[i];
        if (s->flags & EXEC_DETACH || s->state == FORGOTTEN)
            continue;
        if (s->state == RUNNING)
            kill(-s->pid, SIGKILL);
        if (s->client)
            s->client->gone = true;
        if (s->flags & EXEC_TTY)
            session_close_out(&s->out[0]);
        session_close_in(s);
        forget(s, true);
    }
    frame(c, DONE, 0);
    return true;
}

static bool on_frame(struct client *c, uint8_t type, struct reader *r)
{
    if (type == EXEC)
        return on_exec(c, r);
    if (type == ATTACH)
        return on_attach(c, r);
    if (type == SIGNAL)
        return on_signal(c, r);
    if (type >= STDIN && type <= ACK)
        return c->session && on_attached(c, type, r);
    if (r->at != r->end)
        return false;
    if (type == QUIESCE)
        quiesce(BY_QUIESCE);
    return type == QUIESCE || (type == HELLO && on_hello(c)) || (type == LIST && on_list(c)) ||
           (type == END_SESSIONS && on_end_sessions(c));
}

/* ---- connections ---- */

/* Read one piece of the current frame; never a byte beyond it, so nothing is held that was not asked for.
 * False when there is nothing more for now. */
static bool read_client(struct client *c)
{
    bool in_header = c->got < FRAME_HEADER;
    uint8_t *to = in_header ? c->header + c->got : c->payload + (c->got - FRAME_HEADER);
    size_t want = in_header ? FRAME_HEADER - c->got : c->length - (c->got - FRAME_HEADER);
    ssize_t got = want ? recv(c->fd, to, want, MSG_DONTWAIT) : 0;
    if (want && got <= 0) {
        c->gone = got == 0 || (errno != EAGAIN && errno != EINTR);
        return false;
    }
    c->got += (uint32_t)got;
    if (in_header && c->got == FRAME_HEADER) {
        struct reader r = {c->header + 1, c->header + FRAME_HEADER, false};
        c->length = read_u32(&r);
        c->payload = c->length <= FRAME_LIMIT ? malloc(c->length + 1) : NULL;
        c->gone = !c->payload;
    }
    if (c->gone || c->got < FRAME_HEADER || c->got - FRAME_HEADER < c->length)
        return !c->gone;
    struct reader r = {c->payload, c->payload + c->length, false};
    c->gone = !on_frame(c, c->header[0], &r) || c->gone;
    free(c->payload);
    c->payload = NULL;
    c->got = 0;
    return true;
}

static bool may_read(const struct client *c) { return !c->gone && c->out_end <= OUT_SIZE - REPLY_ROOM; }

static void accept_clients(void)
{
    while (client_count < CLIENT_LIMIT) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0)
            return;
        struct client *c = calloc(1, sizeof *c);
        if (!c) {
            close(fd);
            return;
        }
        c->fd = fd;
        c->slot = -1;
        clients[client_count++] = c;
    }
}

static void drop_gone(void)
{
    for (int i = 0; i < client_count; i++) {
        struct client *c = clients[i];
        if (!c->gone)
            continue;
        flush(c); /* what it was owed before it broke the rules */
        detach(c);
        close(c->fd);
        free(c->payload);
        free(c);
        clients[i--] = clients[--client_count];
    }
}

/* ---- the loop ---- */

static struct pollfd polled[2 + CLIENT_LIMIT + 3 * (SESSION_LIMIT + 1)];
static int polled_count;

static int watch(int fd, short events)
{
    if (fd < 0 || !events)
        return -1;
    polled[polled_count] = (struct pollfd){fd, events, 0};
    return polled_count++;
}

static bool came(int slot) { return slot >= 0 && polled[slot].revents; }

static int fill_poll_set(int signals, int64_t now)
{
    int64_t wake = INT64_MAX;
    polled_count = 0;
    watch(signals, POLLIN);
    watch(client_count < CLIENT_LIMIT ? listener : -1, POLLIN);
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
    for (int i = 0; i < client_count; i++) {
        struct client *c = clients[i];
        c->slot = watch(c->fd, (short)((may_read(c) ? POLLIN : 0) | (c->out_end ? POLLOUT : 0)));
    }
    return wake == INT64_MAX ? -1 : wake <= now ? 0 : (int)(wake - now);
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
        if (s->to_log && ((s->out[0].flush_at && s->out[0].flush_at <= now) ||
                          (s->out[1].flush_at && s->out[1].flush_at <= now)))
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

/* Every child, ours or adopted. Called on each turn, whatever the signalfd said: no status is ever missed. */
static void reap(int64_t now)
{
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        for (int i = 0; i < session_count; i++)
            if (sessions[i]->pid == pid && sessions[i]->state == RUNNING) {
                session_reaped(sessions[i], status);
                sessions[i]->forget_at = now + KEEP_STATUS_MS;
            }
}

static void serve(int signals)
{
    while (sessions[0]->state != ENDED) {
        int wait_ms = fill_poll_set(signals, clock_ms());
        poll(polled, (nfds_t)polled_count, wait_ms); /* interrupted: nothing came, the turn does no harm */
        int64_t now = clock_ms();
        take_signals(signals);
        reap(now);
        serve_sessions(now);
        for (int i = 0; i < client_count; i++)
            for (int piece = 0; piece < PIECES && came(clients[i]->slot) && may_read(clients[i]); piece++)
                if (!read_client(clients[i]))
                    break;
        accept_clients();
        for (int i = 0; i < client_count; i++)
            if (!clients[i]->gone)
                feed(clients[i]);
        drop_gone();
        drop_forgotten(now);
    }
}

/* ---- birth and end ---- */

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

static int open_listener(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/.thawbox/control.sock"};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    unlink(address.sun_path);
    mode_t before = umask(0177);
    bool bound = fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 64) == 0;
    umask(before);
    return bound ? fd : -1;
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
    listener = open_listener();
    if (listener < 0)
        return fail_start(ready, 125, errno, "the control socket cannot be opened");
    config.main.flags = 0;
    struct session *main_program = start(&config.main, &failure);
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
    quiesce(BY_END);
    return by_signal ? 128 + by_signal : code;
}
