/* `init relay NAME`: joins our standard input and output to the abstract unix socket NAME, until that side ends.
 *
 * Run by exec, as root, so that the host can talk to a program of the sandbox over streams that survive a dump: the
 * socket has both its ends inside. Exits with 0 at the end of what the socket sends, 111 (ECONNREFUSED) when nobody
 * listens, 125 when something broke. The end of our input is passed on; what then still comes is still printed.
 */
#define _GNU_SOURCE
#include "init.h"
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { REFUSED = 111, FAILED_RELAY = 125 };

static int connect_abstract(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(name);
    if (length == 0 || length > sizeof address.sun_path - 1)
        return -1;
    memcpy(address.sun_path + 1, name, length);
    int link = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
    if (link >= 0 && connect(link, (struct sockaddr *)&address, size) < 0) {
        close(link);
        return -1;
    }
    return link;
}

/* One piece from `from` to `to`: how much it was, 0 at the end, -1 when either side is broken. */
static ssize_t pass_on(int from, int to)
{
    static char piece[64 << 10];
    ssize_t got;
    do
        got = read(from, piece, sizeof piece);
    while (got < 0 && errno == EINTR);
    for (ssize_t done = 0; done < got;) {
        ssize_t put = write(to, piece + done, (size_t)(got - done));
        if (put < 0 && errno != EINTR)
            return -1;
        done += put > 0 ? put : 0;
    }
    return got;
}

int run_relay(const char *name)
{
    int link = connect_abstract(name);
    if (link < 0)
        return errno == ECONNREFUSED ? REFUSED : FAILED_RELAY;
    struct pollfd polled[2] = {{.fd = link, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    for (;;) {
        if (poll(polled, 2, -1) < 0) {
            if (errno == EINTR)
                continue;
            return FAILED_RELAY;
        }
        if (polled[0].revents) {
            ssize_t passed = pass_on(link, 1);
            if (passed <= 0)
                return passed == 0 ? 0 : FAILED_RELAY;
        }
        if (polled[1].revents && pass_on(0, link) <= 0) {
            shutdown(link, SHUT_WR);
            polled[1].fd = -1;
        }
    }
}
