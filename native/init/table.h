/* Every session of the sandbox, the main program first. */
#ifndef THAWBOX_TABLE_H
#define THAWBOX_TABLE_H
#include "session.h"

enum { SESSION_LIMIT = 256, KEEP_STATUS_MS = 60000 };

extern struct config config;
extern struct session *sessions[SESSION_LIMIT + 1];
extern int session_count;
extern uint32_t last_session;

int64_t clock_ms(void);
int exit_code(int status);
int exit_signal(int status);

struct session *find_session(uint32_t id);
/* NULL, with the reason in `failure`, leaves nothing behind. */
struct session *start_session(const struct request *request, struct failure *failure);
/* Its status was fetched or has waited long enough; it is attached to nobody. */
void forget(struct session *s, bool fetched);
void drop_forgotten(int64_t now);
/* Every child, ours or adopted. Called on each turn, whatever the signalfd said: no status is ever missed. */
void reap(int64_t now);
#endif
