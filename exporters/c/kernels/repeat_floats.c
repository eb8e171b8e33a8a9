/* Rows [h][w] of floats to [h * times_h][w * times_w], each value repeated. */
static void repeat_floats(const uint8_t *x, uint8_t *y, int32_t channels, int32_t h, int32_t w, int32_t times_h,
                          int32_t times_w) {
    int32_t c, oy, ox, at = 0;
    for (c = 0; c < channels; c++, x += 4 * h * w)
        for (oy = 0; oy < h * times_h; oy++)
            for (ox = 0; ox < w * times_w; ox++) save(y, at++, load(x, oy / times_h * w + ox / times_w));
}
