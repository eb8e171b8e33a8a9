enum { SUMS = 16 }; /* that a sum of products consists of, so that vectors can add them */

/* As `gather`, of floats; d: how far apart the input's channels and its positions are. */
static void gather_floats(const layer_t *l, const uint8_t *x, uint8_t *to, int32_t oy, int32_t ox, const int32_t *d) {
    const int32_t y0 = oy * l->stride_h - l->pad_h, x0 = ox * l->stride_w - l->pad_w;
    int32_t ky, kx, c;
    for (ky = 0; ky < l->kernel_h; ky++) {
        const int32_t at_y = place(y0 + ky * l->dilation_h, l->spread_h, l->in_h);
        for (kx = 0; kx < l->kernel_w; kx++, to += 4 * l->group_c) {
            const int32_t at_x = place(x0 + kx * l->dilation_w, l->spread_w, l->in_w);
            if (at_y < 0 || at_x < 0) {
                memset(to, 0, 4 * (size_t)l->group_c);
            } else {
                const uint8_t *const from = x + 4 * (at_y * l->in_w + at_x) * d[1];
                for (c = 0; c < l->group_c; c++) memcpy(to + 4 * c, from + 4 * c * d[0], 4);
            }
        }
    }
}

/* Products i, i + 16, i + 32, ... are added in order, then the sums in pairs. `rest` is NULL but for nine bits. */
static float dot_of_floats(const uint8_t *x, const int8_t *w, const int8_t *rest, int32_t count) {
    float sums[SUMS] = {0.0f};
    int32_t i, k;
    if (rest) {
        for (k = 0; k < count; k += SUMS)
            for (i = 0; i < SUMS; i++)
                sums[i] = sums[i] + load(x, k + i) * (float)((int32_t)w[k + i] + 2 * (int32_t)rest[k + i]);
    } else {
        for (k = 0; k < count; k += SUMS)
            for (i = 0; i < SUMS; i++) sums[i] = sums[i] + load(x, k + i) * (float)w[k + i];
    }
    for (i = 0; i < 8; i++) sums[i] = sums[i] + sums[i + 8];
    for (i = 0; i < 4; i++) sums[i] = sums[i] + sums[i + 4];
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

/* A layer of floats; d: how far apart channels and positions of the input are, then those of the output. */
static void layer_of_floats(const layer_t *l, const uint8_t *x, uint8_t *y, uint8_t *room, const float *offsets,
                            const int32_t *d) {
    const int32_t n = l->kernel_h * l->kernel_w * l->group_c, next = l->wide ? 2 * l->padded : l->padded;
    int8_t *const w = (int8_t *)(room + 4 * l->padded);
    int32_t c, count, i, oy, ox;
    memset(room, 0, 4 * (size_t)l->padded);
    for (c = 0; c < l->out_c; c += count) {
        const uint8_t *group = x + 4 * (c / l->filters_a_group * l->group_c) * d[0];
        uint8_t *out = y + 4 * c * d[2];
        count = decode_block(l, c, w);
        for (oy = 0; oy < l->out_h; oy++)
            for (ox = 0; ox < l->out_w; ox++, out += 4 * d[3]) {
                gather_floats(l, group, room, oy, ox, d);
                for (i = 0; i < count; i++) {
                    const int8_t *one = w + i * next;
                    const float sum = dot_of_floats(room, one, l->wide ? one + l->padded : NULL, n);
                    save(out, i * d[2], sum * l->steps[c + i] + offsets[c + i]);
                }
            }
    }
}
