static void to_integers(const uint8_t *x, uint8_t *y, int32_t count, float scale, int32_t zero_point, int32_t low,
                        int32_t high) {
    int32_t i;
    for (i = 0; i < count; i++) y[i] = quantize(load(x, i), scale, zero_point, low, high);
}
