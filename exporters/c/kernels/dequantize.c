static void dequantize(const uint8_t *x, float *y, int32_t count, int32_t zero_point, float scale) {
    int32_t i;
    for (i = 0; i < count; i++) y[i] = (float)((int32_t)x[i] - zero_point) * scale;
}
