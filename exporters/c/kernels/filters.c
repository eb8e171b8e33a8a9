enum { PLAIN, FIELDS, TRITS }; /* how integers lie in flash: docs/c-inference.md, section 6 */

/* Weights: integers [filter][kernel height][kernel width][channels of a group]. Multipliers: one a filter, or
   the same one for all. While a layer runs, `block` filters are decoded at a time, each to `padded` bytes. */
typedef struct {
#ifdef MODEL_TRACE
    const char *name;
#endif
    const uint8_t *weights;
    const int32_t *bias;
    const int32_t *multiplier;
    const float *steps;
    int32_t in_h, in_w, in_c, out_h, out_w, out_c;
    int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, spread_h, spread_w;
    int32_t group_c, filters_a_group, each, shift;
    int32_t in_zero, out_zero, low, high;
    int32_t row_bytes, base, step, bits, encoding, wide, padded, block;
} layer_t;

/* Decodes fields eight at a time, which take as many bytes as a field takes bits; returns how many. */
static int32_t decode_eights(const layer_t *l, const uint8_t *from, int8_t *room, int32_t count) {
    const uint64_t mask = ((uint64_t)1 << l->bits) - 1u;
    const int32_t bits = l->bits, base = l->base, step = l->step;
    int32_t i, k;
    for (i = 0; i + 8 <= count; i += 8, from += bits) {
        uint64_t window = 0;
        for (k = 0; k < bits; k++) window |= (uint64_t)from[k] << (8 * k);
        for (k = 0; k < 8; k++) room[i + k] = (int8_t)(base + step * (int32_t)(window >> (k * bits) & mask));
    }
    return i;
}

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
    i = l->encoding == FIELDS && !l->wide ? decode_eights(l, from, room, count) : 0;
    from += i / 8 * l->bits;
    for (; i < count; i++) {
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
