enum { PLAIN, FIELDS, TRITS }; /* how integers lie in flash: docs/c-inference.md, section 6 */

/* Weights: integers [filter][kernel height][kernel width][channels of a group]. Factors and shifts: one a filter, or
   the same one for all. While a layer runs, `block` filters are decoded at a time, each to `padded` bytes. */
typedef struct {
#ifdef MODEL_TRACE
    const char *name;
#endif
    const uint8_t *weights;
    const int32_t *bias;
    const int32_t *multiplier;
    const uint8_t *shift;
    const float *steps;
    int32_t in_h, in_w, in_c, out_h, out_w, out_c;
    int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, spread_h, spread_w;
    int32_t group_c, filters_a_group, each;
    int32_t in_zero, out_zero, low, high;
    int32_t row_bytes, base, step, bits, encoding, wide, padded, block;
} layer_t;

/* Decodes a filter to `room`. Integers of nine bits take two rows, `next` apart: the lowest bit, and the rest. */
static void decode(const layer_t *l, int32_t filter, int8_t *room, int32_t next) {
    const uint8_t *from = l->weights + filter * l->row_bytes;
    const int32_t count = l->kernel_h * l->kernel_w * l->group_c;
    const uint32_t mask = (1u << l->bits) - 1u;
    uint32_t window = 0;
    int32_t have = 0, i;
    if (l->encoding == PLAIN) {
        memcpy(room, from, (size_t)count);
        return;
    }
    for (i = 0; i < count; i++) {
        int32_t value;
        if (l->encoding == TRITS) {
            if (i % 5 == 0) window = *from++;
            value = (int32_t)(window % 3u);
            window /= 3u;
        } else {
            while (have < l->bits) {
                window |= (uint32_t)*from++ << have;
                have += 8;
            }
            value = (int32_t)(window & mask);
            window >>= l->bits;
            have -= l->bits;
        }
        value = l->base + l->step * value;
        if (l->wide) {
            room[i] = (int8_t)(value & 1);
            room[next + i] = (int8_t)((value - (value & 1)) / 2);
        } else {
            room[i] = (int8_t)value;
        }
    }
}
