/* g: zero points of input and output, lowest, highest. `fixed`: the count to divide by; 0 counts what is inside. */
static void average_pool(const pool_t *p, const uint8_t *x, uint8_t *y, const int32_t *multiplier, const uint8_t *shift,
                         int32_t fixed, const int32_t *g) {
    int32_t oy, ox, c, count;
    for (oy = 0; oy < p->out_h; oy++)
        for (ox = 0; ox < p->out_w; ox++, y += p->channels)
            for (c = 0; c < p->channels; c++) {
                const int64_t sum = window_sum(p, x + c, oy, ox, g[0], fixed, &count);
                y[c] = (uint8_t)to_grid(sum * multiplier[count - 1], shift[count - 1], g[1], g[2], g[3]);
            }
}
