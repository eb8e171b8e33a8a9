/* g: zero points of input and output, lowest, highest. `fixed`: the count to divide by; 0 counts what is inside. */
static void average_pool(const pool_t *p, const uint8_t *x, uint8_t *y, const int32_t *multiplier, const uint8_t *shift,
                         int32_t fixed, const int32_t *g) {
    int32_t oy, ox, ky, kx, c;
    for (oy = 0; oy < p->out_h; oy++)
        for (ox = 0; ox < p->out_w; ox++, y += p->channels)
            for (c = 0; c < p->channels; c++) {
                int32_t sum = 0, inside = 0, count;
                for (ky = 0; ky < p->kernel_h; ky++)
                    for (kx = 0; kx < p->kernel_w; kx++) {
                        const int32_t at_y = oy * p->stride_h - p->pad_h + ky * p->dilation_h;
                        const int32_t at_x = ox * p->stride_w - p->pad_w + kx * p->dilation_w;
                        if (at_y < 0 || at_y >= p->in_h || at_x < 0 || at_x >= p->in_w) continue;
                        sum += x[(at_y * p->in_w + at_x) * p->channels + c];
                        inside++;
                    }
                sum -= inside * g[0];
                count = fixed ? fixed : inside;
                if (count == 0) count = 1;
                y[c] = (uint8_t)to_grid((int64_t)sum * multiplier[count - 1], shift[count - 1], g[1], g[2], g[3]);
            }
}
