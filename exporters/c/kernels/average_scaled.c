/* As `average_pool`, in float32: a factor for each count. */
static void average_scaled(const pool_t *p, const uint8_t *x, uint8_t *y, const float *factors, int32_t fixed,
                           const int32_t *g) {
    int32_t oy, ox, c, count;
    for (oy = 0; oy < p->out_h; oy++)
        for (ox = 0; ox < p->out_w; ox++, y += p->channels)
            for (c = 0; c < p->channels; c++) {
                const float sum = (float)window_sum(p, x + c, oy, ox, g[0], fixed, &count);
                y[c] = (uint8_t)on_grid(sum * factors[count - 1], g[1], g[2], g[3]);
            }
}
