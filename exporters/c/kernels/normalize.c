/* 1 / sqrt(x), x > 0: four steps of Newton's method. */
static float inverse_root(float x) {
    const float half = 0.5f * x;
    uint32_t bits;
    float y;
    int32_t i;
    memcpy(&bits, &x, sizeof bits);
    bits = 0x5f3759dfu - (bits >> 1);
    memcpy(&y, &bits, sizeof bits);
    for (i = 0; i < 4; i++) y = y * (1.5f - half * y * y);
    return y;
}

/* Each row minus its mean, over its standard deviation, times weight, plus bias. */
static void normalize(const uint8_t *x, uint8_t *y, int32_t rows, int32_t count, const float *weight, const float *bias,
                      float epsilon) {
    int32_t i, row;
    for (row = 0; row < rows; row++, x += 4 * count, y += 4 * count) {
        float mean = 0.0f, squares = 0.0f, factor;
        for (i = 0; i < count; i++) mean = mean + load(x, i);
        mean = mean / (float)count;
        for (i = 0; i < count; i++) {
            const float distance = load(x, i) - mean;
            squares = squares + distance * distance;
        }
        factor = inverse_root(squares / (float)count + epsilon);
        for (i = 0; i < count; i++) save(y, i, (load(x, i) - mean) * factor * weight[i] + bias[i]);
    }
}
