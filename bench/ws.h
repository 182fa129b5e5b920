/* SPDX-License-Identifier: Apache-2.0
 * ws.h: what the server and the C client of the benchmarks share: clock, CPU, whole writes. */
#ifndef BENCH_WS_H
#define BENCH_WS_H
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <time.h>
#include <unistd.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>

static inline void die(const char *what)
{
    perror(what);
    exit(1);
}

static inline uint64_t clock_of(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static inline void pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
        die("sched_setaffinity");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static inline void write_all(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t put = send(fd, data, size, MSG_NOSIGNAL);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            die("send");
        data += put;
        size -= (size_t)put;
    }
}

#endif
