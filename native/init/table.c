#define _GNU_SOURCE
#include "table.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>

struct config config;
struct session *sessions[SESSION_LIMIT + 1];
int session_count;
uint32_t last_session;

int64_t clock_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int exit_code(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 0; }
int exit_signal(int status) { return WIFSIGNALED(status) ? WTERMSIG(status) : 0; }

struct session *find_session(uint32_t id)
{
    for (int i = 0; i < session_count; i++)
        if (sessions[i]->id == id && sessions[i]->state != FORGOTTEN)
            return sessions[i];
    return NULL;
}

void forget(struct session *s, bool fetched)
{
    for (int i = 0; i < 2 && fetched && !s->to_log; i++)
        s->out[i].ring.start = s->out[i].ring.end;
    s->state = FORGOTTEN;
    s->to_log = true; /* what its children still write goes to the log from here on */
    session_log(s, clock_ms(), false);
}

void drop_forgotten(int64_t now)
{
    for (int i = 1; i < session_count; i++) {
        struct session *s = sessions[i];
        if (s->state == ENDED && !s->client && (s->forget_at <= now || s->forget_at > now + KEEP_STATUS_MS))
            forget(s, false);
        if (s->state != FORGOTTEN || s->out[0].fd >= 0 || s->out[1].fd >= 0)
            continue;
        session_log(s, now, true);
        free(s);
        sessions[i--] = sessions[--session_count];
    }
}

struct session *start_session(const struct request *request, struct failure *failure)
{
    *failure = (struct failure){EAGAIN, 126, "too many sessions are open in this sandbox"};
    struct session *s = session_count <= SESSION_LIMIT ? calloc(1, sizeof *s) : NULL;
    if (!s)
        return NULL;
    s->id = session_count ? ++last_session : 0;
    s->forget_at = INT64_MAX;
    if (!session_start(s, request, &config, failure)) {
        free(s);
        return NULL;
    }
    return sessions[session_count++] = s;
}

void reap(int64_t now)
{
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        for (int i = 0; i < session_count; i++)
            if (sessions[i]->pid == pid && sessions[i]->state == RUNNING) {
                session_reaped(sessions[i], status);
                sessions[i]->forget_at = now + KEEP_STATUS_MS;
            }
}
