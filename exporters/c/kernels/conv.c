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

/* What is multiplied ends at a multiple of VECTOR; windows and decoded filters end in zeros up to a multiple of 32. */
#if defined(__ARM_FEATURE_SIMD32) && !defined(__ARM_NEON)
enum { VECTOR = 4 };

/* Four products of unsigned bytes and signed ones, as two pairs of 16 bits. */
static int32_t four_products(int16x2_t even, int16x2_t odd, const int8_t *w, int32_t sum) {
    uint32_t bytes;
    memcpy(&bytes, w, sizeof bytes);
    sum = __smlad(even, __sxtb16((int8x4_t)bytes), sum);
    return __smlad(odd, __sxtb16((int8x4_t)(bytes >> 8)), sum);
}

static void four_dots(const uint8_t *x, const int8_t *w, int32_t count, int32_t next, int32_t *sums) {
    const int8_t *const w1 = w + next, *const w2 = w1 + next, *const w3 = w2 + next;
    int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3], i;
    for (i = 0; i < count; i += VECTOR) {
        uint32_t bytes;
        int16x2_t even, odd;
        memcpy(&bytes, x + i, sizeof bytes);
        even = (int16x2_t)__uxtb16(bytes);
        odd = (int16x2_t)__uxtb16(bytes >> 8);
        s0 = four_products(even, odd, w + i, s0);
        s1 = four_products(even, odd, w1 + i, s1);
        s2 = four_products(even, odd, w2 + i, s2);
        s3 = four_products(even, odd, w3 + i, s3);
    }
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
}
#else
enum { VECTOR = 32 };

/* Adds the products of a window with four filters, `next` apart: each value is read once, and no sum waits for another. */
static void four_dots(const uint8_t *x, const int8_t *w, int32_t count, int32_t next, int32_t *sums) {
    const int8_t *const w1 = w + next, *const w2 = w1 + next, *const w3 = w2 + next;
    int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3], i;
    for (i = 0; i < count; i++) {
        const int32_t value = x[i];
        s0 += value * w[i];
        s1 += value * w1[i];
        s2 += value * w2[i];
        s3 += value * w3[i];
    }
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
}
#endif

static int32_t dot(const uint8_t *x, const int8_t *w, int32_t count) {
    int32_t sum = 0, i;
    for (i = 0; i < count; i++) sum += (int32_t)x[i] * (int32_t)w[i];
    return sum;
}

/* The sums of `count` filters from number c on at one position. */
static void sums_at(const layer_t *l, const uint8_t *patch, const int8_t *w, int32_t c, int32_t count,
                    int32_t *restrict sums) {
    const int32_t n = (l->kernel_h * l->kernel_w * l->group_c + VECTOR - 1) & ~(VECTOR - 1);
    const int32_t next = l->wide ? 2 * l->padded : l->padded;
    int32_t i, k;
    memcpy(sums, l->bias + c, (size_t)count * sizeof *sums);
    for (i = 0; i + 4 <= count; i += 4, w += 4 * next) {
        four_dots(patch, w, n, next, sums + i);
        if (l->wide) {
            int32_t more[4] = {0, 0, 0, 0};
            four_dots(patch, w + l->padded, n, next, more);
            for (k = 0; k < 4; k++) sums[i + k] += 2 * more[k];
        }
    }
    for (; i < count; i++, w += next) {
        sums[i] += dot(patch, w, n);
        if (l->wide) sums[i] += 2 * dot(patch, w + l->padded, n);
    }
}
