/* The last layer: its sums times their value in float. */
static void conv_float(const layer_t *l, const uint8_t *x, float *y, int8_t *room, int32_t next_c, int32_t next_at) {
    int32_t c, oy, ox;
    for (c = 0; c < l->out_c; c++) {
        const int8_t *w = filter_of(l, c, room);
        const uint8_t *group = x + c / l->filters_a_group * l->group_c;
        float *out = y + c * next_c;
        TRACE_FILTER(l, c, w, l->bias[c], 0, 0);
        for (oy = 0; oy < l->out_h; oy++)
            for (ox = 0; ox < l->out_w; ox++, out += next_at)
                *out = (float)sum_at(l, group, w, c, oy, ox) * l->steps[c];
    }
}
