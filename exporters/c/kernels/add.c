/* b has b_count values, which are repeated: as many as a, or one a channel. */
static void add(const uint8_t *a, const uint8_t *b, uint8_t *y, int32_t count, int32_t b_count, const int32_t *p) {
    int32_t i, j; /* p: both zero points, both multipliers, shift, zero point, lowest, highest */
    for (i = 0; i < count; i += b_count)
        for (j = 0; j < b_count; j++) {
            const int64_t first = (int64_t)((int32_t)a[i + j] - p[0]) * p[2];
            const int64_t second = (int64_t)((int32_t)b[j] - p[1]) * p[3];
            y[i + j] = (uint8_t)to_grid(first + second, p[4], p[5], p[6], p[7]);
        }
}
