/* Frames of the control socket and the config file, as PROTOCOL.md gives them. Pure: bytes in, values out. */
#ifndef THAWBOX_WIRE_H
#define THAWBOX_WIRE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    FRAME_HEADER = 5,          /* type u8, payload length u32 */
    FRAME_LIMIT = 256 << 10,   /* longest payload: argv and environment of one exec */
    GROUP_LIMIT = 64,
    STRING_LIMIT = 16384,      /* argv and env entries in one request */
    RLIMIT_LIMIT = 16,
};

enum frame_type {
    HELLO = 0x01, EXEC, ATTACH, LIST, SIGNAL, QUIESCE, END_SESSIONS,
    STDIN = 0x10, STDIN_END, RESIZE, ACK,
    STATE = 0x81, STARTED, ATTACHED, SESSIONS, DONE,
    OUTPUT = 0x90, STDIN_ACK, EXIT, DETACHED,
    FAILED = 0xff,
};

enum exec_flag { EXEC_TTY = 1, EXEC_DETACH = 2, EXEC_STDIN = 4 };

/* What is left to read; `bad` is set for good by the first read past the end. */
struct reader { const uint8_t *at, *end; bool bad; };

uint8_t read_u8(struct reader *r);
uint16_t read_u16(struct reader *r);
uint32_t read_u32(struct reader *r);
uint64_t read_u64(struct reader *r);

/* A program to start. The strings point into the payload, which must outlive this; `free_request` frees the rest. */
struct request {
    uint8_t flags;
    uint16_t rows, columns;
    uid_t uid;
    gid_t gid;
    uint32_t group_count;
    gid_t groups[GROUP_LIMIT];
    char *cwd, **argv, **env;
};

struct limit { int resource; uint64_t soft, hard; };

struct config {
    uint32_t log_bytes, log_files, limit_count;
    struct limit limits[RLIMIT_LIMIT];
    struct request main;
};

/* Both return false, holding nothing, unless every byte of the input was understood. */
bool parse_request(struct reader *r, struct request *request);
bool parse_config(const uint8_t *bytes, size_t length, struct config *config);
void free_request(struct request *request);

uint8_t *put_u8(uint8_t *at, uint8_t value);
uint8_t *put_u32(uint8_t *at, uint32_t value);
uint8_t *put_u64(uint8_t *at, uint64_t value);
uint8_t *put_header(uint8_t *at, uint8_t type, uint32_t length);
#endif
