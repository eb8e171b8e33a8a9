static void mean(const uint8_t *x, uint8_t *y, int32_t rows, int32_t count) {
    int32_t i, row;
    for (row = 0; row < rows; row++, x += 4 * count) {
        float sum = 0.0f;
        for (i = 0; i < count; i++) sum = sum + load(x, i);
        save(y, row, sum / (float)count);
    }
}
