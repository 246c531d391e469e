#include "wire.h"
#include <stdlib.h>
#include <string.h>

/* Little endian by shifts: the same bytes on every machine, whatever its alignment rules. */
static uint64_t read_bytes(struct reader *r, int count)
{
    uint64_t value = 0;
    if (r->bad || r->end - r->at < count) {
        r->bad = true;
        return 0;
    }
    for (int i = 0; i < count; i++)
        value |= (uint64_t)*r->at++ << (8 * i);
    return value;
}

uint8_t read_u8(struct reader *r) { return (uint8_t)read_bytes(r, 1); }
uint16_t read_u16(struct reader *r) { return (uint16_t)read_bytes(r, 2); }
uint32_t read_u32(struct reader *r) { return (uint32_t)read_bytes(r, 4); }
uint64_t read_u64(struct reader *r) { return read_bytes(r, 8); }

static char *read_string(struct reader *r)
{
    const uint8_t *nul = r->bad ? NULL : memchr(r->at, 0, (size_t)(r->end - r->at));
    if (!nul) {
        r->bad = true;
        return NULL;
    }
    char *text = (char *)r->at;
    r->at = nul + 1;
    return text;
}

bool parse_request(struct reader *r, struct request *request)
{
    memset(request, 0, sizeof *request);
    request->flags = read_u8(r);
    request->rows = read_u16(r);
    request->columns = read_u16(r);
    request->uid = read_u32(r);
    request->gid = read_u32(r);
    request->group_count = read_u32(r);
    if (r->bad || request->group_count > GROUP_LIMIT)
        return false;
    for (uint32_t i = 0; i < request->group_count; i++)
        request->groups[i] = read_u32(r);
    uint32_t argc = read_u32(r), envc = read_u32(r);
    if (r->bad || argc == 0 || argc > STRING_LIMIT || envc > STRING_LIMIT)
        return false;
    request->argv = calloc((size_t)argc + envc + 2, sizeof(char *));
    if (!request->argv)
        return false;
    request->env = request->argv + argc + 1;
    request->cwd = read_string(r);
    for (uint32_t i = 0; i < argc; i++)
        request->argv[i] = read_string(r);
    for (uint32_t i = 0; i < envc; i++) {
        request->env[i] = read_string(r);
        r->bad = r->bad || !strchr(request->env[i], '=');
    }
    if (!r->bad && r->at == r->end && !(request->flags & ~(EXEC_TTY | EXEC_DETACH | EXEC_STDIN)))
        return true;
    free_request(request);
    return false;
}

void free_request(struct request *request)
{
    free(request->argv);
    request->argv = request->env = NULL;
}

bool parse_config(const uint8_t *bytes, size_t length, struct config *config)
{
    static const char magic[8] = "thawbox1";
    struct reader r = {bytes, bytes + length, length < sizeof magic || memcmp(bytes, magic, sizeof magic)};
    if (r.bad)
        return false;
    r.at += sizeof magic;
    config->log_bytes = read_u32(&r);
    config->log_files = read_u32(&r);
    config->limit_count = read_u32(&r);
    if (r.bad || config->limit_count > RLIMIT_LIMIT || config->log_files < 1 || config->log_files > 99)
        return false;
    for (uint32_t i = 0; i < config->limit_count; i++) {
        config->limits[i].resource = (int)read_u32(&r);
        config->limits[i].soft = read_u64(&r);
        config->limits[i].hard = read_u64(&r);
    }
    return parse_request(&r, &config->main);
}

static uint8_t *put_bytes(uint8_t *at, uint64_t value, int count)
{
    for (int i = 0; i < count; i++)
        *at++ = (uint8_t)(value >> (8 * i));
    return at;
}

uint8_t *put_u8(uint8_t *at, uint8_t value) { return put_bytes(at, value, 1); }
uint8_t *put_u32(uint8_t *at, uint32_t value) { return put_bytes(at, value, 4); }
uint8_t *put_u64(uint8_t *at, uint64_t value) { return put_bytes(at, value, 8); }
uint8_t *put_header(uint8_t *at, uint8_t type, uint32_t length) { return put_u32(put_u8(at, type), length); }
