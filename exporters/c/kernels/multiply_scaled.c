/* As `add_scaled`, of the product, with one factor. */
static void multiply_scaled(const uint8_t *a, const uint8_t *b, uint8_t *y, int32_t count, int32_t b_count,
                            const int32_t *p, const float *factors) {
    const int32_t a_zero = p[0], b_zero = p[1], zero = p[2], low = p[3], high = p[4];
    const float factor = factors[0];
    int32_t i, j;
    for (i = 0; i < count; i += b_count)
        for (j = 0; j < b_count; j++) {
            const int32_t product = ((int32_t)a[i + j] - a_zero) * ((int32_t)b[j] - b_zero);
            y[i + j] = (uint8_t)on_grid((float)product * factor, zero, low, high);
        }
}
