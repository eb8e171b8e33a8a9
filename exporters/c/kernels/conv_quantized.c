static void conv(const layer_t *l, const uint8_t *x, uint8_t *y, int8_t *room) {
    int32_t c, oy, ox;
    for (c = 0; c < l->out_c; c++) {
        const int8_t *w = filter_of(l, c, room);
        const uint8_t *group = x + c / l->filters_a_group * l->group_c;
        const int64_t multiplier = l->multiplier[c * l->each];
        const int32_t shift = l->shift[c * l->each];
        uint8_t *out = y + c;
        TRACE_FILTER(l, c, w, l->bias[c], l->multiplier[c * l->each], shift);
        for (oy = 0; oy < l->out_h; oy++)
            for (ox = 0; ox < l->out_w; ox++, out += l->out_c) {
                const int64_t sum = sum_at(l, group, w, c, oy, ox);
                *out = to_grid(sum * multiplier, shift, l->out_zero, l->low, l->high);
            }
    }
}
