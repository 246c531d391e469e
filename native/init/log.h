/* The rotating output log, and the ring that every stream of bytes passes through. */
#ifndef THAWBOX_LOG_H
#define THAWBOX_LOG_H
#include "wire.h"

#define RING_SIZE 65536u

/* Bytes `start` to `end`, counted since the stream began, are held; the mapping is made on first use. */
struct ring { uint8_t *bytes; uint64_t start, end; };

bool ring_ready(struct ring *ring);
void ring_free(struct ring *ring);
/* The free or held bytes that lie in one piece. */
uint8_t *ring_free_part(struct ring *ring, size_t *length);
uint8_t *ring_held_part(const struct ring *ring, uint64_t from, size_t *length);

enum { LOG_NOTE = 0, LOG_STDOUT = 1, LOG_STDERR = 2 };

void log_open(uint32_t file_bytes, uint32_t file_count);
/* Log what `ring` holds: all of it with `flush`, else up to its last line break (or all, if it is full). */
void log_drain(uint32_t session, uint8_t stream, struct ring *ring, bool flush);
uint64_t log_end(void);
uint64_t wall_clock(void);
#endif
