/* SPDX-License-Identifier: Apache-2.0
 * killed_writer.c <directory>: create or resume worker-0.ring and write events of 1 to 5 records until killed. Every word of
 * a record is its position; instrument is its place in the event. Prints + once it writes. */
#include "fh_ring.h"
#include <fcntl.h>
#include <unistd.h>

int main(int count, char **argument)
{
    fh_writer writer;
    int dir_fd = count == 2 ? open(argument[1], O_RDONLY | O_DIRECTORY) : -1;
    if (fh_ring_resume(&writer, dir_fd, 0) != FH_OK && fh_ring_create(&writer, dir_fd, 0, 4096, 1) != FH_OK)
        return 1;
    if (write(1, "+", 1) != 1)
        return 1;
    for (uint32_t event = 0;; event++) {
        uint32_t size = 1 + event % 5;
        for (uint32_t i = 0; i < size; i++) {
            fh_record record = {.ts_recv_ns = writer.position, .instrument = i, .kind = FH_TRADE,
                                .flags = i + 1 == size ? FH_LAST : 0};
            for (int word = 0; word < 4; word++)
                record.body.word[word] = (int64_t)writer.position;
            fh_ring_put(&writer, &record);
        }
        if (event % 7 == 0)
            fh_ring_flush(&writer);
    }
}
