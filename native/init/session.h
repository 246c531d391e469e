/* A session: a program that was started here, its standard streams, and whoever is attached to it. */
#ifndef THAWBOX_SESSION_H
#define THAWBOX_SESSION_H
#include "log.h"

struct stream {
    int fd, slot;          /* slot: index in the poll set of this turn, or -1 */
    struct ring ring;      /* start: acknowledged or logged, end: read */
    uint64_t sent, left;   /* left: bytes still to be read once the program has ended */
    int64_t flush_at;      /* when an unfinished line is logged as it is; 0: none waits */
};

enum session_state { RUNNING, ENDING, ENDED, FORGOTTEN };

struct client;
struct session {
    uint32_t id;           /* 0: the main program */
    pid_t pid;
    uint8_t flags;         /* enum exec_flag */
    enum session_state state;
    int status;            /* as waitpid gave it */
    bool to_log, in_end, in_news, exit_sent;
    int in_fd, in_slot;
    struct ring in;        /* start: written to the program, end: accepted from the client */
    struct stream out[2];
    struct client *client;
    int64_t forget_at;
    char name[48];
};

/* Why a program did not start. `code` is 127 (no such program) or 126 (any other cause). */
struct failure { int cause; uint32_t code; char text[320]; };

/* Start the program; false leaves no process, no descriptor and says why in `failure`. */
bool session_start(struct session *s, const struct request *request, const struct config *config,
                   struct failure *failure);
void session_resize(struct session *s, uint16_t rows, uint16_t columns);
void session_close_in(struct session *s);
void session_close_out(struct stream *stream);
/* Read what is there into the ring, or into the log; write waiting input; note the end of a program that was reaped. */
void session_read(struct session *s, int which, int64_t now);
void session_write(struct session *s);
void session_reaped(struct session *s, int status);
void session_settle(struct session *s);
/* An unfinished line has waited long enough. */
bool line_due(const struct stream *stream, int64_t now);
void session_log(struct session *s, int64_t now, bool flush);
#endif
