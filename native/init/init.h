#ifndef THAWBOX_INIT_H
#define THAWBOX_INIT_H
#include <stdbool.h>

/* Signals that the keeper passes to init, and init to the main program; ends with 0. */
extern const int FORWARDED[];

/* Be pid 2 until the main program ends; returns the exit status. `ready` is told how the start went, then closed. */
int run_init(int ready);

/* Be the program that joins its standard streams to an abstract unix socket; returns the exit status. */
int run_relay(const char *name);

/* The poll set of the present turn: `watch` returns the slot by which `came` then knows the descriptor, -1 for none. */
int watch(int fd, short events);
bool came(int slot);
#endif
