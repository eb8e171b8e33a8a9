/* [h][w][channels] to [h * times_h][w * times_w][channels], each value repeated. */
static void upsample(const uint8_t *x, uint8_t *y, int32_t h, int32_t w, int32_t channels, int32_t times_h,
                     int32_t times_w) {
    int32_t oy, ox, c;
    for (oy = 0; oy < h * times_h; oy++)
        for (ox = 0; ox < w * times_w; ox++)
            for (c = 0; c < channels; c++) *y++ = x[(oy / times_h * w + ox / times_w) * channels + c];
}
