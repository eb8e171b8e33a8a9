/* As `add`, in float32. p: zero points of a, b and the result, lowest, highest. */
static void add_scaled(const uint8_t *a, const uint8_t *b, uint8_t *y, int32_t count, int32_t b_count, const int32_t *p,
                       const float *factors) {
    const int32_t a_zero = p[0], b_zero = p[1], zero = p[2], low = p[3], high = p[4];
    const float of_a = factors[0], of_b = factors[1];
    int32_t i, j;
    for (i = 0; i < count; i += b_count)
        for (j = 0; j < b_count; j++) {
            const float first = (float)((int32_t)a[i + j] - a_zero) * of_a;
            const float second = (float)((int32_t)b[j] - b_zero) * of_b;
            y[i + j] = (uint8_t)on_grid(first + second, zero, low, high);
        }
}
