enum { PLAIN, FIELDS, TRITS }; /* how integers lie in flash: docs/c-inference.md, section 6 */

/* Weights: integers [filter][kernel height][kernel width][channels of a group]. Multipliers and steps: one a filter, or,
   unless `each`, the same one for all. While a layer runs, `block` filters are decoded at a time, each to `padded` bytes. */
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

/* Four fields side by side to four integers of a byte, all at once: step * field stays below 256. */
static void decode_four(uint32_t fields, uint32_t bits, uint32_t step, uint32_t bases, int8_t *room) {
    const uint32_t pair = (1u << 2 * bits) - 1u, ones = ((1u << bits) - 1u) * 0x00010001u;
    fields = (fields & pair) | fields >> 2 * bits << 16;
    fields = ((fields & ones) | (fields >> bits & ones) << 8) * step;
    fields = ((fields & 0x7f7f7f7fu) + (bases & 0x7f7f7f7fu)) ^ ((fields ^ bases) & 0x80808080u); /* no carries */
    room[0] = (int8_t)(uint8_t)fields;
    room[1] = (int8_t)(uint8_t)(fields >> 8);
    room[2] = (int8_t)(uint8_t)(fields >> 16);
    room[3] = (int8_t)(uint8_t)(fields >> 24);
}

/* Decodes fields of four bits, two from each byte. */
static void decode_pairs(const uint8_t *restrict from, int8_t *restrict room, int32_t count, int32_t step,
                         int32_t base) {
    int32_t i;
    for (i = 0; i < count; i++) {
        const int32_t low = from[i] & 15, high = from[i] >> 4;
        room[2 * i] = (int8_t)(base + step * low);
        room[2 * i + 1] = (int8_t)(base + step * high);
    }
}

/* Decodes fields eight at a time, which take as many bytes as a field takes bits; returns how many. */
static int32_t decode_eights(const layer_t *l, const uint8_t *from, int8_t *room, int32_t count) {
    const uint32_t bits = (uint32_t)l->bits, step = (uint32_t)l->step, bases = (uint8_t)l->base * 0x01010101u;
    const uint32_t mask = (1u << 4 * bits) - 1u;
    int32_t i;
    if (bits == 4) {
        decode_pairs(from, room, count / 8 * 4, l->step, l->base);
        return count / 8 * 8;
    }
    for (i = 0; i + 8 <= count; i += 8, from += bits) {
        uint64_t window = 0;
        uint32_t k;
        for (k = bits; k > 0; k--) window = window << 8 | from[k - 1];
        decode_four((uint32_t)window & mask, bits, step, bases, room + i);
        decode_four((uint32_t)(window >> (4 * bits)) & mask, bits, step, bases, room + i + 4);
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
