/* SPDX-License-Identifier: Apache-2.0
 * server.c: a WebSocket server for one client, that sends the same bytes to whoever comes.
 *
 *   server <certificate|-> <key|-> <cpu> <messages> <count> blast
 *   server <certificate|-> <key|-> <cpu> <messages> <count> paced RATE DIRECTORY spin|block
 *
 * messages: a file of u32 size, bytes. Prints its port, waits for one upgrade, sends count messages (the file again and again),
 * then a close frame. blast: writes of about 64 KiB; with TLS one record a frame, as venues send. paced: one frame a write, RATE
 * a second; the 19 digits behind "t": become CLOCK_REALTIME ns. It then also is the strategy: it reads the instance in
 * DIRECTORY, spinning between two sends, or (block) in a child process asleep on the ring's futex, and prints latencies.
 */
#include "feedhandler_feed.h"
#include "ws.h"
#include <sys/mman.h>
#include <sys/wait.h>

enum { BATCH_SIZE = 65536, SAMPLE_MAX = 1 << 20, STAMP_DIGITS = 19, DRAIN_MS = 300 };

typedef struct message { char *frame; size_t size, stamp; } message;

static message *messages;
static size_t message_count;
static int fd;
static SSL *tls;

typedef struct samples { uint64_t count, receive[SAMPLE_MAX], read[SAMPLE_MAX], total[SAMPLE_MAX], done, ready, wrong; } samples;
static samples *seen;
static fh_feed feed;

static void load(const char *path)
{
    FILE *file = fopen(path, "rb");
    uint32_t size;
    size_t max = 0;
    if (file == NULL)
        die(path);
    while (fread(&size, 4, 1, file) == 1) {
        if (message_count == max) {
            max = max ? 2 * max : 4096;
            messages = realloc(messages, max * sizeof *messages);
        }
        message *item = &messages[message_count++];
        size_t head = size < 126 ? 2 : size < 65536 ? 4 : 10;
        char *frame = malloc(head + size + 1);
        frame[0] = (char)0x81;
        frame[1] = (char)(head == 2 ? size : head == 4 ? 126 : 127);
        for (size_t i = 2; i < head; i++)
            frame[i] = (char)(((uint64_t)size >> 8 * (head - 1 - i)) & 255);
        if (fread(frame + head, 1, size, file) != size)
            die(path);
        frame[head + size] = 0;
        char *stamp = strstr(frame + head, "\"t\":");
        *item = (message){frame, head + size, stamp ? (size_t)(stamp + 4 - frame) : 0};
    }
    fclose(file);
}

static void put(const char *data, size_t size)
{
    if (tls == NULL)
        write_all(fd, data, size);
    else if (SSL_write(tls, data, (int)size) != (int)size)
        die("SSL_write");
}

/* What the memory BIO holds to the socket. */
static void drain(void)
{
    char *data;
    long size = BIO_get_mem_data(SSL_get_wbio(tls), &data);
    if (size > 0)
        write_all(fd, data, (size_t)size);
    (void)BIO_reset(SSL_get_wbio(tls));
}

static void accept_one(const char *certificate, const char *key)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 1) != 0
        || getsockname(listener, (struct sockaddr *)&address, &size) != 0)
        die("listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    if ((fd = accept(listener, NULL, NULL)) < 0)
        die("accept");
    close(listener);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (strcmp(certificate, "-") == 0)
        return;
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    if (SSL_CTX_use_certificate_chain_file(context, certificate) != 1 || SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) != 1)
        die("certificate");
    tls = SSL_new(context);
    SSL_set_fd(tls, fd);
    if (SSL_accept(tls) != 1)
        die("SSL_accept");
}

static void upgrade(void)
{
    char request[8192], text[256], accept[64];
    unsigned char hash[20];
    int used = 0, got;
    request[0] = 0;
    while (strstr(request, "\r\n\r\n") == NULL) {
        got = tls ? SSL_read(tls, request + used, (int)sizeof request - 1 - used) : (int)read(fd, request + used, sizeof request - 1 - (size_t)used);
        if (got <= 0)
            die("request");
        used += got;
        request[used] = 0;
    }
    char *key = strcasestr(request, "sec-websocket-key:");
    if (key == NULL)
        die("key");
    key += 18 + strspn(key + 18, " ");
    int size = snprintf(text, sizeof text, "%.*s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", (int)strcspn(key, "\r "), key);
    EVP_Digest(text, (size_t)size, hash, NULL, EVP_sha1(), NULL);
    EVP_EncodeBlock((unsigned char *)accept, hash, 20);
    size = snprintf(text, sizeof text, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    "Sec-WebSocket-Accept: %s\r\n\r\n", accept);
    put(text, (size_t)size);
}

static void blast(size_t count)
{
    char *batch = malloc(2 * BATCH_SIZE);
    size_t used = 0;
    if (tls != NULL) {
        BIO *out = BIO_new(BIO_s_mem());
        SSL_set0_wbio(tls, out);
    }
    for (size_t i = 0; i < count; i++) {
        const message *item = &messages[i % message_count];
        if (tls != NULL) {
            put(item->frame, item->size); /* one record a frame */
            if (BIO_pending(SSL_get_wbio(tls)) > BATCH_SIZE)
                drain();
            continue;
        }
        if (used + item->size > BATCH_SIZE) {
            write_all(fd, batch, used);
            used = 0;
        }
        if (item->size > BATCH_SIZE)
            write_all(fd, item->frame, item->size);
        else {
            memcpy(batch + used, item->frame, item->size);
            used += item->size;
        }
    }
    write_all(fd, batch, used);
    free(batch);
}

/* -- the strategy ------------------------------------------------------------------------------------------------ */

static void take(void)
{
    fh_record record[256];
    fh_feed_news news;
    while (fh_feed_poll(&feed, record, 256, &news) == FH_FEED_OK) {
        uint64_t now = clock_of(CLOCK_REALTIME);
        for (size_t i = 0; i < news.count; i++) {
            if (record[i].kind != FH_TRADE || seen->count >= SAMPLE_MAX)
                continue;
            uint64_t stamp = record[i].body.trade.trade_id, at = seen->count;
            seen->receive[at] = record[i].ts_recv_ns - stamp;
            seen->read[at] = now - record[i].ts_recv_ns;
            seen->total[at] = now - stamp;
            __atomic_store_n(&seen->count, at + 1, __ATOMIC_RELEASE);
        }
    }
}

static void sleeper(const char *directory)
{
    char error[400];
    struct sched_param priority = {.sched_priority = 2};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sched_setscheduler(0, SCHED_FIFO, &priority); /* else the sender, busy on the same CPU, keeps us waiting */
    if (fh_feed_open(&feed, directory, error, sizeof error) != FH_FEED_OK)
        exit(1);
    __atomic_store_n(&seen->ready, 1, __ATOMIC_RELEASE);
    while (!__atomic_load_n(&seen->done, __ATOMIC_ACQUIRE)) {
        take();
        fh_feed_wait(&feed, 20000000);
    }
    take();
    exit(0);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void tell(const char *name, uint64_t *sample, size_t count, const char *end)
{
    size_t skip = count / 10; /* cold start */
    qsort(sample + skip, count - skip, sizeof *sample, by_value);
    printf("\"%s\": {\"p50\": %.2f, \"p99\": %.2f}%s", name, (double)sample[skip + (count - skip) / 2] / 1e3,
           (double)sample[skip + (count - skip) * 99 / 100] / 1e3, end);
}

static void paced(size_t count, double rate, const char *directory, int spin)
{
    char error[400], digits[24];
    pid_t pid = 0;
    seen = mmap(NULL, sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (seen == MAP_FAILED)
        die("mmap");
    if (spin) {
        if (fh_feed_open(&feed, directory, error, sizeof error) != FH_FEED_OK)
            die(error);
    } else if ((pid = fork()) == 0)
        sleeper(directory);
    while (!spin && !__atomic_load_n(&seen->ready, __ATOMIC_ACQUIRE))
        sched_yield();
    struct sched_param priority = {.sched_priority = 1};
    sched_setscheduler(0, SCHED_FIFO, &priority); /* where permitted; below the sleeper */
    uint64_t interval = (uint64_t)(1e9 / rate), due = clock_of(CLOCK_MONOTONIC) + interval;
    for (size_t i = 0; i < count; i++) {
        const message *item = &messages[i % message_count];
        while (clock_of(CLOCK_MONOTONIC) < due)
            if (spin)
                take();
        due += interval;
        snprintf(digits, sizeof digits, "%019llu", (unsigned long long)clock_of(CLOCK_REALTIME));
        memcpy(item->frame + item->stamp, digits, STAMP_DIGITS);
        put(item->frame, item->size);
    }
    uint64_t end = clock_of(CLOCK_MONOTONIC) + DRAIN_MS * 1000000u;
    while (__atomic_load_n(&seen->count, __ATOMIC_ACQUIRE) < count && clock_of(CLOCK_MONOTONIC) < end)
        if (spin)
            take();
    __atomic_store_n(&seen->done, 1, __ATOMIC_RELEASE);
    priority.sched_priority = 0;
    sched_setscheduler(0, SCHED_OTHER, &priority);
    if (!spin)
        waitpid(pid, NULL, 0);
    printf("{\"sent\": %zu, \"read\": %llu, ", count, (unsigned long long)seen->count);
    tell("receive", seen->receive, seen->count, ", ");
    tell("reader", seen->read, seen->count, ", ");
    tell("total", seen->total, seen->count, "}\n");
    fflush(stdout);
}

int main(int count, char **text)
{
    static const char goodbye[] = {(char)0x88, 2, 3, (char)0xE8};
    char rest[4096];
    if (count < 7)
        return 2;
    signal(SIGPIPE, SIG_IGN);
    pin(atoi(text[3]));
    load(text[4]);
    accept_one(text[1], text[2]);
    upgrade();
    if (strcmp(text[6], "blast") == 0)
        blast((size_t)atol(text[5]));
    else if (count == 10)
        paced((size_t)atol(text[5]), atof(text[7]), text[8], strcmp(text[9], "spin") == 0);
    put(goodbye, sizeof goodbye);
    if (tls != NULL && BIO_method_type(SSL_get_wbio(tls)) == BIO_TYPE_MEM)
        drain();
    struct timeval patience = {.tv_sec = 60};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    while (read(fd, rest, sizeof rest) > 0)
        shutdown(fd, SHUT_WR); /* the client answered the close frame: RFC 6455 has the server close first */
    return 0;
}
