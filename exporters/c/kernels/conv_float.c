/* A layer whose sums become floats: times their value. They may lie at any address. */
static void conv_float(const layer_t *l, const uint8_t *x, uint8_t *y, uint8_t *room, int32_t next_c, int32_t next_at) {
    int8_t *const w = (int8_t *)(room + l->padded);
    int32_t sums[MOST_FILTERS];
    int32_t c, count, i, oy, ox;
    memset(room, 0, (size_t)l->padded);
    for (c = 0; c < l->out_c; c += count) {
        const uint8_t *group = x + c / l->filters_a_group * l->group_c;
        uint8_t *out = y + 4 * c * next_c;
        count = decode_block(l, c, w);
        for (oy = 0; oy < l->out_h; oy++)
            for (ox = 0; ox < l->out_w; ox++, out += 4 * next_at) {
                gather(l, group, room, oy, ox);
                sums_at(l, room, w, c, count, sums);
                for (i = 0; i < count; i++) {
                    const float found = (float)sums[i] * l->steps[c + i];
                    memcpy(out + 4 * i * next_c, &found, sizeof found);
                }
            }
    }
}
