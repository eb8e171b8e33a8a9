/* The integers of one channel in a window, minus the zero point each, and the count to divide by: `fixed`, or, if that
   is 0, how many are inside. */
static int32_t window_sum(const pool_t *p, const uint8_t *x, int32_t oy, int32_t ox, int32_t zero, int32_t fixed,
                          int32_t *count) {
    int32_t sum = 0, inside = 0, ky, kx;
    for (ky = 0; ky < p->kernel_h; ky++)
        for (kx = 0; kx < p->kernel_w; kx++) {
            const int32_t at_y = oy * p->stride_h - p->pad_h + ky * p->dilation_h;
            const int32_t at_x = ox * p->stride_w - p->pad_w + kx * p->dilation_w;
            if (at_y < 0 || at_y >= p->in_h || at_x < 0 || at_x >= p->in_w) continue;
            sum += x[(at_y * p->in_w + at_x) * p->channels];
            inside++;
        }
    *count = fixed ? fixed : inside ? inside : 1;
    return sum - inside * zero;
}
