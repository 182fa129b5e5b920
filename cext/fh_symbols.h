/* SPDX-License-Identifier: Apache-2.0
 * fh_symbols.h: venue symbol (UTF-8, 1 to 48 bytes) to instrument row. Filled by the control plane, looked up per frame.
 * Open addressing at half load; a symbol that is not there is FH_INSTRUMENT_NONE, never inserted by a look-up. */
#ifndef FH_SYMBOLS_H
#define FH_SYMBOLS_H
#include <stddef.h>
#include <stdint.h>
#include "include/feedhandler.h"

#define FH_SYMBOL_SIZE_MAX 48

typedef struct fh_symbols fh_symbols;
fh_symbols *fh_symbols_new(uint32_t symbol_max);      /* NULL without memory */
void fh_symbols_free(fh_symbols *symbols);
int fh_symbols_put(fh_symbols *symbols, const char *text, size_t size, uint32_t instrument); /* FH_ERROR_FULL, FH_ERROR_RANGE */
uint32_t fh_symbols_get(const fh_symbols *symbols, const char *text, size_t size);

#endif
