/* Uses every function of csq.h but iteration: `gcc -std=c99 -Os -c` of it and `size` give the reader's code size; with
   -DWITH_CHANNELS that of a reader of inference files. */

#include "csq.h"

int use(const void *p, size_t n, int8_t *a, int16_t *b, float *f, uint32_t *crc);
static csq_decoder d;

int use(const void *p, size_t n, int8_t *a, int16_t *b, float *f, uint32_t *crc) {
    csq_file file; csq_tensor t; csq_status s = csq_open(&file, p, n);
    if (s == CSQ_OK) s = csq_find(&file, &t, "x");
    if (s == CSQ_OK) s = csq_check(&t);
    if (s == CSQ_OK) s = csq_begin(&d, &t);
    if (s == CSQ_OK) s = csq_seek(&d, 3);
    if (s == CSQ_OK) s = csq_read_i8(&d, a, 9);
    if (s == CSQ_OK) s = csq_read_i16(&d, b, 9);
    if (s == CSQ_OK) s = csq_read_float(&d, 2.0f, f, 9);
    if (s == CSQ_OK) s = csq_checksum(&t, &d, crc);
#ifdef WITH_CHANNELS
    csq_channels c;
    if (s == CSQ_OK) s = csq_channels_begin(&c, &file);
    if (s == CSQ_OK) s = csq_channels_next(&c, &t);
    if (s == CSQ_OK) f[9] = csq_has_integer_bias(&c) ? (float)csq_bias_i32(&c, 0) : csq_bias_float(&c, 0);
    if (s == CSQ_OK) f[10] = csq_scale(&c, csq_has_bias(&c) ? 1 : 0);
#endif
    return (int)s;
}
