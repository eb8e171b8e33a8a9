/* The value before place `at` of a row that was made `times` as long, and the share of the value after it. */
static int32_t before(int32_t at, int32_t times, float *share) {
    const int32_t halves = 2 * at + 1 - times, from = halves > 0 ? halves : 0;
    *share = (float)(from % (2 * times)) / (float)(2 * times);
    return from / (2 * times);
}

static float between(float one, float other, float share) { return one * (1.0f - share) + other * share; }

/* Rows [h][w] of floats to [h * times_h][w * times_w], linear between the centers of values. */
static void blend_floats(const uint8_t *x, uint8_t *y, int32_t channels, int32_t h, int32_t w, int32_t times_h,
                         int32_t times_w) {
    int32_t c, oy, ox, at = 0;
    for (c = 0; c < channels; c++, x += 4 * h * w)
        for (oy = 0; oy < h * times_h; oy++) {
            float down, right;
            const int32_t top = before(oy, times_h, &down), bottom = top + 1 < h ? top + 1 : top;
            for (ox = 0; ox < w * times_w; ox++) {
                const int32_t one = before(ox, times_w, &right), other = one + 1 < w ? one + 1 : one;
                const float upper = between(load(x, top * w + one), load(x, top * w + other), right);
                const float lower = between(load(x, bottom * w + one), load(x, bottom * w + other), right);
                save(y, at++, between(upper, lower, down));
            }
        }
}
