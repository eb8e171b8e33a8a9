/* The last layer: its sums times their value in float. */
static void conv_float(const layer_t *l, const uint8_t *x, float *y, uint8_t *room, int32_t next_c, int32_t next_at) {
    int8_t *const w = (int8_t *)(room + l->padded);
    int32_t sums[MOST_FILTERS];
    int32_t c, count, i, oy, ox;
    memset(room, 0, (size_t)l->padded);
    for (c = 0; c < l->out_c; c += count) {
        const uint8_t *group = x + c / l->filters_a_group * l->group_c;
        float *out = y + c * next_c;
        count = decode_block(l, c, w);
        for (oy = 0; oy < l->out_h; oy++)
            for (ox = 0; ox < l->out_w; ox++, out += next_at) {
                gather(l, group, room, oy, ox);
                sums_at(l, room, w, c, count, sums);
                for (i = 0; i < count; i++) out[i * next_c] = (float)sums[i] * l->steps[c + i];
            }
    }
}
