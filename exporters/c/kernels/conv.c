static int32_t dot(const uint8_t *x, const int8_t *w, int32_t count) {
    int32_t sum = 0, i;
    for (i = 0; i < count; i++) sum += (int32_t)x[i] * (int32_t)w[i];
    return sum;
}

/* What lies outside is 0, which is the integer in_zero. */
static int32_t outside(const layer_t *l, const int8_t *w, int32_t count) {
    int32_t sum = 0, i;
    if (l->in_zero == 0) return 0;
    for (i = 0; i < count; i++) sum += (int32_t)w[i];
    return sum * l->in_zero;
}

/* Where position `at` is in the input, whose values are `spread` apart; -1 where there is no value. */
static int32_t place(int32_t at, int32_t spread, int32_t size) {
    if (at < 0 || at % spread != 0 || at / spread >= size) return -1;
    return at / spread;
}

static int32_t window_sum(const layer_t *l, const uint8_t *x, const int8_t *w, int32_t y0, int32_t x0) {
    const int32_t row = l->kernel_w * l->group_c;
    const int32_t side_by_side = l->group_c == l->in_c && l->dilation_w == 1 && l->spread_w == 1;
    int32_t sum = 0, ky, kx;
    for (ky = 0; ky < l->kernel_h; ky++, w += row) {
        const int32_t y = place(y0 + ky * l->dilation_h, l->spread_h, l->in_h);
        if (y < 0) {
            sum += outside(l, w, row);
        } else if (side_by_side) {
            int32_t first = x0 < 0 ? -x0 : 0, last = l->in_w - x0;
            if (first > l->kernel_w) first = l->kernel_w;
            if (last > l->kernel_w) last = l->kernel_w;
            if (last < first) last = first;
            sum += outside(l, w, first * l->group_c);
            if (last > first)
                sum += dot(x + (y * l->in_w + x0 + first) * l->in_c, w + first * l->group_c,
                           (last - first) * l->group_c);
            sum += outside(l, w + last * l->group_c, (l->kernel_w - last) * l->group_c);
        } else {
            for (kx = 0; kx < l->kernel_w; kx++) {
                const int32_t at = place(x0 + kx * l->dilation_w, l->spread_w, l->in_w);
                if (at < 0) sum += outside(l, w + kx * l->group_c, l->group_c);
                else sum += dot(x + (y * l->in_w + at) * l->in_c, w + kx * l->group_c, l->group_c);
            }
        }
    }
    return sum;
}

/* The sum of filter c at one position. */
static int32_t sum_at(const layer_t *l, const uint8_t *x, const int8_t *w, int32_t c, int32_t oy, int32_t ox) {
    const int32_t y0 = oy * l->stride_h - l->pad_h, x0 = ox * l->stride_w - l->pad_w;
    int32_t sum = l->bias[c] + window_sum(l, x, w, y0, x0);
    if (l->wide) sum += 2 * window_sum(l, x, w + l->kernel_h * l->kernel_w * l->group_c, y0, x0);
    return sum;
}
