/* Random and mutated configs and exec requests through the parsers, under address and undefined-behaviour sanitizers.
 * The seed is fixed: a failure is found again by the same command. Usage: fuzz-wire [ROUNDS] [SEED]
 */
#include "wire.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t seed;

static uint32_t chance(uint32_t below) /* xorshift64* */
{
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return (uint32_t)((seed * 2685821657736338717u) >> 33) % below;
}

static size_t valid_request(uint8_t *at)
{
    static const char texts[] = "/work\0sh\0-c\0true\0HOME=/\0X=";
    uint8_t *end = put_u32(put_u8(at, (uint8_t)chance(8)), chance(1u << 31));
    uint32_t groups = chance(4);
    end = put_u32(put_u32(put_u32(end, 0), 0), groups);
    for (uint32_t i = 0; i < groups; i++)
        end = put_u32(end, i);
    end = put_u32(put_u32(end, 3), 2);
    memcpy(end, texts, sizeof texts);
    return (size_t)(end - at) + sizeof texts;
}

static size_t valid_config(uint8_t *at)
{
    memcpy(at, "thawbox1", 8);
    uint32_t limits = chance(3);
    uint8_t *end = put_u32(put_u32(put_u32(at + 8, 4096), 1 + chance(9)), limits);
    for (uint32_t i = 0; i < limits; i++)
        end = put_u64(put_u64(put_u32(end, i), 1), 2);
    return (size_t)(end - at) + valid_request(end);
}

static size_t mutate(uint8_t *bytes, size_t length)
{
    for (uint32_t i = chance(4); i > 0; i--)
        bytes[chance((uint32_t)length)] = (uint8_t)(chance(3) ? chance(256) : 255 * chance(2));
    return chance(4) ? length : chance((uint32_t)length + 1);
}

static void check(const struct request *request, const uint8_t *bytes, size_t length)
{
    size_t count = 0;
    for (char **text = request->argv; *text; text++, count++)
        if ((uint8_t *)*text < bytes || (uint8_t *)*text + strlen(*text) >= bytes + length)
            abort();
    for (char **text = request->env; *text; text++)
        if ((uint8_t *)*text < bytes || (uint8_t *)*text + strlen(*text) >= bytes + length || !strchr(*text, '='))
            abort();
    if (count == 0 || strlen(request->cwd) >= length)
        abort();
}

int main(int argc, char **argv)
{
    long rounds = argc > 1 ? atol(argv[1]) : 200000, accepted = 0;
    seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 0x7468617762u;
    for (long round = 0; round < rounds; round++) {
        uint8_t scratch[512] = {0};
        bool whole = chance(2);
        size_t length = mutate(scratch, whole ? valid_config(scratch) : valid_request(scratch));
        uint8_t *bytes = malloc(length + !length); /* its exact size, so that a byte too many is seen */
        memcpy(bytes, scratch, length);
        struct config config;
        struct request request;
        struct reader r = {bytes, bytes + length, false};
        if (whole ? parse_config(bytes, length, &config) : parse_request(&r, &request)) {
            check(whole ? &config.main : &request, bytes, length);
            free_request(whole ? &config.main : &request);
            accepted++;
        }
        free(bytes);
    }
    printf("%ld inputs, %ld of them accepted\n", rounds, accepted);
    return accepted == 0;
}
