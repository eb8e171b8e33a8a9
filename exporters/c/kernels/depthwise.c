enum { LANES = 32 }; /* channels that are summed side by side */

/* Each channel from the channel of the same number; `room` holds the filters [kernel height][kernel width][channel]. */
static void depthwise(const layer_t *l, const uint8_t *x, uint8_t *y, uint8_t *room) {
    const int32_t taps = l->kernel_h * l->kernel_w;
    int32_t sums[LANES];
    int8_t one[MOST_TAPS];
    int8_t *const filters = (int8_t *)room;
    int32_t c, i, k, oy, ox, ky, kx;
    for (c = 0; c < l->out_c; c++) {
        decode(l, c, one, 0);
        TRACE_FILTER(l, c, one);
        for (k = 0; k < taps; k++) filters[k * l->out_c + c] = one[k];
    }
    for (oy = 0; oy < l->out_h; oy++)
        for (ox = 0; ox < l->out_w; ox++, y += l->out_c)
            for (c = 0; c < l->out_c; c += LANES) {
                const int32_t count = l->out_c - c < LANES ? l->out_c - c : LANES;
                for (i = 0; i < count; i++) sums[i] = l->bias[c + i];
                for (ky = 0; ky < l->kernel_h; ky++)
                    for (kx = 0; kx < l->kernel_w; kx++) {
                        const int32_t at_y = oy * l->stride_h - l->pad_h + ky * l->dilation_h;
                        const int32_t at_x = ox * l->stride_w - l->pad_w + kx * l->dilation_w;
                        const int8_t *w = filters + (ky * l->kernel_w + kx) * l->out_c + c;
                        if (at_y < 0 || at_y >= l->in_h || at_x < 0 || at_x >= l->in_w) {
                            if (l->in_zero != 0)
                                for (i = 0; i < count; i++) sums[i] += l->in_zero * (int32_t)w[i];
                        } else {
                            const uint8_t *from = x + (at_y * l->in_w + at_x) * l->in_c + c;
                            for (i = 0; i < count; i++) sums[i] += (int32_t)from[i] * (int32_t)w[i];
                        }
                    }
                round_sums(l, sums, c, count, y + c);
            }
}
