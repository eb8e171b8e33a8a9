static void softmax(const uint8_t *x, uint8_t *y, int32_t rows, int32_t count) {
    int32_t i, row;
#ifdef __clang__ /* version 14 takes four rows at a time, and then reads powers before they are written */
#pragma clang loop vectorize(disable) interleave(disable)
#endif
    for (row = 0; row < rows; row++, x += 4 * count, y += 4 * count) {
        float largest = load(x, 0), sum = 0.0f;
        for (i = 1; i < count; i++)
            if (load(x, i) > largest) largest = load(x, i);
        for (i = 0; i < count; i++) {
            const float power = exponential(load(x, i) - largest);
            sum = sum + power;
            save(y, i, power);
        }
        for (i = 0; i < count; i++) save(y, i, load(y, i) / sum);
    }
}
