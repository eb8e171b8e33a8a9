static void max_pool(const pool_t *p, const uint8_t *x, uint8_t *y) {
    int32_t oy, ox, ky, kx, c;
    for (oy = 0; oy < p->out_h; oy++)
        for (ox = 0; ox < p->out_w; ox++, y += p->channels) {
            for (c = 0; c < p->channels; c++) y[c] = 0;
            for (ky = 0; ky < p->kernel_h; ky++)
                for (kx = 0; kx < p->kernel_w; kx++) {
                    const int32_t at_y = oy * p->stride_h - p->pad_h + ky * p->dilation_h;
                    const int32_t at_x = ox * p->stride_w - p->pad_w + kx * p->dilation_w;
                    const uint8_t *from;
                    if (at_y < 0 || at_y >= p->in_h || at_x < 0 || at_x >= p->in_w) continue;
                    from = x + (at_y * p->in_w + at_x) * p->channels;
                    for (c = 0; c < p->channels; c++)
                        if (from[c] > y[c]) y[c] = from[c];
                }
        }
}
