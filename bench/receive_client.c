/* SPDX-License-Identifier: Apache-2.0
 * receive_client.c <port> plain|tls <cpu>: the least a C program can do: epoll, recv 256 KiB, (TLS: a memory BIO,) walk the frames.
 *
 * Prints one JSON line: messages, bytes, and CPU ns a message from the upgrade to the close frame.
 */
#include "ws.h"
#include <sys/epoll.h>

enum { READ_SIZE = 262144 };

static int fd, poller, ended;
static SSL *tls;
static char *raw, *plain;
static size_t plain_used;
static uint64_t count, bytes;

static void connect_to(int port, int with_tls)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
    fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        die("connect");
    if (with_tls) {
        tls = SSL_new(SSL_CTX_new(TLS_client_method())); /* unverified: it costs nothing per message */
        SSL_set_fd(tls, fd);
        if (SSL_connect(tls) != 1)
            die("SSL_connect");
    }
}

static void upgrade(void)
{
    static const char request[] = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                  "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    if (tls)
        SSL_write(tls, request, sizeof request - 1);
    else
        write_all(fd, request, sizeof request - 1);
    for (char *end = NULL; end == NULL;) { /* byte by byte: what follows is counted */
        int got = tls ? SSL_read(tls, plain + plain_used, 1) : (int)read(fd, plain + plain_used, 1);
        if (got <= 0)
            die("upgrade");
        plain[++plain_used] = 0;
        end = strstr(plain, "\r\n\r\n");
    }
    plain_used = 0;
}

static void frames(void)
{
    size_t at = 0;
    while (plain_used - at >= 2) {
        const unsigned char *frame = (const unsigned char *)plain + at;
        size_t head = 2, size = frame[1] & 127;
        if (size == 126) {
            head = 4;
            if (plain_used - at < head)
                break;
            size = (size_t)frame[2] << 8 | frame[3];
        } else if (size == 127) {
            head = 10;
            if (plain_used - at < head)
                break;
            size = 0;
            for (int i = 2; i < 10; i++)
                size = size << 8 | frame[i];
        }
        if (plain_used - at < head + size)
            break;
        if (frame[0] == 0x81) {
            count++;
            bytes += size;
        } else if (frame[0] == 0x88)
            ended = 1;
        at += head + size;
    }
    memmove(plain, plain + at, plain_used - at);
    plain_used -= at;
}

static void readable(void)
{
    ssize_t got = tls ? recv(fd, raw, READ_SIZE, 0) : recv(fd, plain + plain_used, READ_SIZE, 0);
    if (got <= 0)
        die("recv");
    if (tls == NULL) {
        plain_used += (size_t)got;
        frames();
        return;
    }
    BIO_write(SSL_get_rbio(tls), raw, (int)got);
    for (int one; (one = SSL_read(tls, plain + plain_used, READ_SIZE)) > 0;) {
        plain_used += (size_t)one;
        frames();
    }
}

int main(int argument_count, char **text)
{
    struct epoll_event event = {.events = EPOLLIN};
    if (argument_count != 4)
        return 2;
    pin(atoi(text[3]));
    raw = malloc(READ_SIZE);
    plain = calloc(1, 4 * READ_SIZE);
    connect_to(atoi(text[1]), strcmp(text[2], "tls") == 0);
    upgrade();
    if (tls) {
        /* OpenSSL may have read ahead into its own buffer; with SSL_set_fd it does not, so switching the BIO is safe here. */
        SSL_set0_rbio(tls, BIO_new(BIO_s_mem()));
    }
    poller = epoll_create1(0);
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    uint64_t begin = clock_of(CLOCK_PROCESS_CPUTIME_ID), wall = clock_of(CLOCK_MONOTONIC);
    while (!ended) {
        if (epoll_wait(poller, &event, 1, 10000) != 1)
            die("epoll_wait");
        readable();
    }
    printf("{\"messages\": %llu, \"bytes\": %llu, \"cpu_ns\": %llu, \"wall_ns\": %llu}\n", (unsigned long long)count,
           (unsigned long long)bytes, (unsigned long long)(clock_of(CLOCK_PROCESS_CPUTIME_ID) - begin),
           (unsigned long long)(clock_of(CLOCK_MONOTONIC) - wall));
    return 0;
}
