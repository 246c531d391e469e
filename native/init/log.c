#define _GNU_SOURCE
#include "log.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

bool ring_ready(struct ring *ring)
{
    if (!ring->bytes) { /* mmap, not malloc: what a session used must be gone from later snapshots */
        void *map = mmap(NULL, RING_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        ring->bytes = map == MAP_FAILED ? NULL : map;
    }
    return ring->bytes != NULL;
}

void ring_free(struct ring *ring)
{
    if (ring->bytes)
        munmap(ring->bytes, RING_SIZE);
    ring->bytes = NULL;
    ring->start = ring->end;
}

static size_t in_one_piece(uint64_t from, uint64_t count)
{
    uint64_t to_edge = RING_SIZE - from % RING_SIZE;
    return (size_t)(count < to_edge ? count : to_edge);
}

uint8_t *ring_free_part(struct ring *ring, size_t *length)
{
    *length = in_one_piece(ring->end, RING_SIZE - (ring->end - ring->start));
    return ring->bytes + ring->end % RING_SIZE;
}

uint8_t *ring_held_part(const struct ring *ring, uint64_t from, size_t *length)
{
    *length = in_one_piece(from, ring->end - from);
    return ring->bytes + from % RING_SIZE;
}

#define LOG "/.thawbox/log/main.log"
static struct { int fd; uint32_t file_bytes, file_count; uint64_t offset, file_start, time, lost; int cause; } out = {.fd = -1};

uint64_t wall_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t log_end(void) { return out.offset; }

static void rotate(void)
{
    char older[64], newer[64];
    for (uint32_t i = out.file_count - 1; i > 0; i--) {
        snprintf(older, sizeof older, LOG ".%u", i);
        snprintf(newer, sizeof newer, i > 1 ? LOG ".%u" : LOG, i - 1);
        rename(newer, older);
    }
    if (out.fd >= 0)
        close(out.fd);
    out.fd = open(LOG, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    out.file_start = out.offset;
}

void log_open(uint32_t file_bytes, uint32_t file_count)
{
    char old[64];
    out.file_bytes = file_bytes;
    out.file_count = file_count;
    for (uint32_t i = 1; i < 100; i++) { /* offsets begin anew with each init, so no older log may stay beside it */
        snprintf(old, sizeof old, LOG ".%u", i);
        unlink(old);
    }
    unlink(LOG);
    rotate();
}

/* One record, whole or not at all: a full disk costs the record, never the log's shape. */
static bool append(uint32_t session, uint8_t stream, bool partial, struct iovec parts[2], uint32_t length)
{
    uint8_t header[32];
    uint64_t now = wall_clock();
    out.time = now > out.time ? now : out.time + 1; /* strictly rising: a reader resumes by time after a restore */
    if (out.fd < 0 || (out.offset > out.file_start && out.offset - out.file_start + length > out.file_bytes))
        rotate();
    uint8_t *at = put_u32(header, 0x474c4254); /* "TBLG" */
    at = put_u8(put_u8(at, stream), partial);
    at = put_u8(put_u8(at, 0), 0);
    put_u64(put_u64(put_u32(put_u32(at, session), length), out.offset), out.time);
    struct iovec whole[3] = {{header, sizeof header}, parts[0], parts[1]};
    ssize_t size = (ssize_t)(sizeof header + length);
    ssize_t put = out.fd >= 0 ? writev(out.fd, whole, 3) : -1;
    if (put == size) {
        out.offset += (uint64_t)size;
        return true;
    }
    out.cause = put < 0 ? errno : ENOSPC; /* a full disk takes what still fits, without an error */
    if (out.fd >= 0 && ftruncate(out.fd, (off_t)(out.offset - out.file_start)) < 0)
        rotate();
    return false;
}

static void confess_loss(void)
{
    char note[128];
    int length = snprintf(note, sizeof note, "thawbox: %llu bytes of output were lost: %s\n",
                          (unsigned long long)out.lost, strerror(out.cause));
    struct iovec parts[2] = {{note, (size_t)length}, {NULL, 0}};
    if (append(0, LOG_NOTE, false, parts, (uint32_t)length))
        out.lost = 0;
}

void log_drain(uint32_t session, uint8_t stream, struct ring *ring, bool flush)
{
    uint64_t end = ring->end;
    if (end == ring->start)
        return;
    while (end > ring->start && ring->bytes[(end - 1) % RING_SIZE] != '\n')
        end--;
    bool partial = end < ring->end && (flush || (end == ring->start && ring->end - end == RING_SIZE));
    if (partial)
        end = ring->end;
    if (end == ring->start)
        return;
    size_t first, length = (size_t)(end - ring->start);
    uint8_t *at = ring_held_part(ring, ring->start, &first);
    first = first < length ? first : length;
    struct iovec parts[2] = {{at, first}, {ring->bytes, length - first}};
    if (out.lost)
        confess_loss();
    if (out.lost || !append(session, stream, partial, parts, (uint32_t)length))
        out.lost += length;
    ring->start = end;
}
