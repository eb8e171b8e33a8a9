static void to_floats(const uint8_t *x, uint8_t *y, int32_t count, int32_t zero_point, float scale) {
    int32_t i;
    for (i = 0; i < count; i++) save(y, i, (float)((int32_t)x[i] - zero_point) * scale);
}
