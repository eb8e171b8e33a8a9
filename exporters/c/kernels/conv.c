/* Where position `at` is in the input, whose values are `spread` apart; -1 where there is no value. */
static int32_t place(int32_t at, int32_t spread, int32_t size) {
    if (at < 0) return -1;
    if (spread == 1) return at < size ? at : -1; /* no division */
    return at % spread == 0 && at / spread < size ? at / spread : -1;
}

/* Copies what a window holds at one position. What lies outside is 0, which is the integer in_zero. */
static void gather(const layer_t *l, const uint8_t *x, uint8_t *to, int32_t oy, int32_t ox) {
    const int32_t y0 = oy * l->stride_h - l->pad_h, x0 = ox * l->stride_w - l->pad_w;
    const int32_t row = l->kernel_w * l->group_c;
    const int32_t side_by_side = l->group_c == l->in_c && l->dilation_w == 1 && l->spread_w == 1 && x0 >= 0 &&
                                 x0 + l->kernel_w <= l->in_w;
    int32_t ky, kx;
    for (ky = 0; ky < l->kernel_h; ky++, to += row) {
        const int32_t y = place(y0 + ky * l->dilation_h, l->spread_h, l->in_h);
        if (y < 0) {
            memset(to, l->in_zero, (size_t)row);
        } else if (side_by_side) {
            memcpy(to, x + (y * l->in_w + x0) * l->in_c, (size_t)row);
        } else {
            for (kx = 0; kx < l->kernel_w; kx++) {
                const int32_t at = place(x0 + kx * l->dilation_w, l->spread_w, l->in_w);
                uint8_t *const one = to + kx * l->group_c;
                if (at < 0) memset(one, l->in_zero, (size_t)l->group_c);
                else memcpy(one, x + (y * l->in_w + at) * l->in_c, (size_t)l->group_c);
            }
        }
    }
}

static int32_t dot(const uint8_t *x, const int8_t *w, int32_t count) {
    int32_t sum = 0, i;
    for (i = 0; i < count; i++) sum += (int32_t)x[i] * (int32_t)w[i];
    return sum;
}

/* Decodes up to `block` filters of one group from number c on; returns how many. Rows end in zeros. */
static int32_t decode_block(const layer_t *l, int32_t c, int8_t *w) {
    const int32_t rows = l->wide ? 2 : 1, end = (c / l->filters_a_group + 1) * l->filters_a_group;
    const int32_t count = end - c < l->block ? end - c : l->block;
    int32_t i;
    memset(w, 0, (size_t)(count * rows * l->padded));
    for (i = 0; i < count; i++, w += rows * l->padded) {
        decode(l, c + i, w, l->padded);
        TRACE_FILTER(l, c + i, w);
    }
    return count;
}

/* The sums of `count` filters from number c on at one position. */
static void sums_at(const layer_t *l, const uint8_t *patch, const int8_t *w, int32_t c, int32_t count, int32_t *sums) {
    const int32_t n = l->padded & ~31; /* it is a multiple of 32: vectors have no rest */
    int32_t i;
    for (i = 0; i < count; i++, w += n) {
        sums[i] = l->bias[c + i] + dot(patch, w, n);
        if (l->wide) {
            w += n;
            sums[i] += 2 * dot(patch, w, n);
        }
    }
}
