#ifndef THAWBOX_INIT_H
#define THAWBOX_INIT_H

/* Signals that the keeper passes to init, and init to the main program; ends with 0. */
extern const int FORWARDED[];

/* Be pid 2 until the main program ends; returns the exit status. `ready` is told how the start went, then closed. */
int run_init(int ready);
#endif
