#define _GNU_SOURCE
#include "control.h"
#include "init.h"
#include "table.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    PROTOCOL = 1, OUTPUT_CHUNK = 16 << 10, OUT_SIZE = 64 << 10, REPLY_ROOM = 24 << 10,
    PIECES = 16, /* of one client's frames in one turn, so that no client holds up the others */
};

struct client {
    int fd, slot;
    uint8_t header[FRAME_HEADER], *payload;
    uint32_t got, length;       /* bytes of the frame that have come, bytes of its payload */
    struct session *session;    /* what it is attached to */
    bool gone;
    uint32_t out_start, out_end;
    uint8_t out[OUT_SIZE];
};

static struct client *clients[CLIENT_LIMIT];
static int client_count, listener = -1;

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

static void send_detached(struct client *c, enum detach_reason reason)
{
    put_u64(put_u8(frame(c, DETACHED, 9), (uint8_t)reason), c->session ? c->session->in.end : 0);
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

/* ---- what clients ask for: each returns false when the frame makes no sense, which costs the client its line ---- */

static bool on_hello(struct client *c)
{
    uint8_t *at = put_u32(put_u32(frame(c, STATE, 25), PROTOCOL), (uint32_t)sessions[0]->pid);
    put_u64(put_u32(put_u32(put_u8(at, sessions[0]->state), (uint32_t)session_count - 1), last_session), log_end());
    return true;
}

static bool on_exec(struct client *c, struct reader *r)
{
    struct request request;
    struct failure failure;
    if (!parse_request(r, &request))
        return false;
    struct session *s = start_session(&request, &failure);
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
    struct session *s = id ? find_session(id) : NULL;
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
    struct session *s = find_session(id);
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
        if (s->state == ENDED) {
            detach(s->client);
            forget(s, true);
        }
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

void control_close_all(enum detach_reason reason)
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
        if (s->client) {
            s->client->gone = true;
            detach(s->client);
        }
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
        control_close_all(BY_QUIESCE);
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

bool control_open(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/.thawbox/control.sock"};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    unlink(address.sun_path);
    mode_t before = umask(0177);
    bool bound = fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 64) == 0;
    umask(before);
    listener = fd;
    return bound;
}

void control_watch(void)
{
    watch(client_count < CLIENT_LIMIT ? listener : -1, POLLIN);
    for (int i = 0; i < client_count; i++) {
        struct client *c = clients[i];
        c->slot = watch(c->fd, (short)((may_read(c) ? POLLIN : 0) | (c->out_end ? POLLOUT : 0)));
    }
}

void control_serve(void)
{
    for (int i = 0; i < client_count; i++)
        for (int piece = 0; piece < PIECES && came(clients[i]->slot) && may_read(clients[i]); piece++)
            if (!read_client(clients[i]))
                break;
    accept_clients();
    for (int i = 0; i < client_count; i++)
        if (!clients[i]->gone)
            feed(clients[i]);
    drop_gone();
}
