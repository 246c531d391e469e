/* The control socket: connections, and what they ask for. */
#ifndef THAWBOX_CONTROL_H
#define THAWBOX_CONTROL_H
#include <stdbool.h>
#include <stdint.h>

enum { CLIENT_LIMIT = 128 };
enum detach_reason { BY_QUIESCE = 1, BY_OTHER_CLIENT = 2, BY_END = 3 };

bool control_open(void);
/* Put the listener and every connection into this turn's poll set; then serve those that something came from. */
void control_watch(void);
void control_serve(void);
/* Let go of every connection, so that a dump finds none that leads out of the sandbox. */
void control_close_all(enum detach_reason reason);
#endif
