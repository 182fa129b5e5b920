/* SPDX-License-Identifier: Apache-2.0
 * fh_crc32.h: CRC-32 (IEEE 802.3, as zlib) for the book checksums of venues. Pure; eight bytes at a time.
 */
#ifndef FH_CRC32_H
#define FH_CRC32_H
#include <stddef.h>
#include <stdint.h>

uint32_t fh_crc32(const char *text, size_t size);

#endif
