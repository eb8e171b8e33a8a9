/* As `add`, with one multiplier. */
static void multiply(const uint8_t *a, const uint8_t *b, uint8_t *y, int32_t count, int32_t b_count, const int32_t *p) {
    int32_t i, j;
    for (i = 0; i < count; i += b_count)
        for (j = 0; j < b_count; j++) {
            const int32_t product = ((int32_t)a[i + j] - p[0]) * ((int32_t)b[j] - p[1]);
            y[i + j] = (uint8_t)to_grid((int64_t)product * p[2], p[4], p[5], p[6], p[7]);
        }
}
