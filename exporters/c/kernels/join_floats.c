/* Rows of `count` floats of x, each to its place in a row of `total` floats of y. */
static void join_floats(const uint8_t *x, uint8_t *y, int32_t rows, int32_t count, int32_t total) {
    int32_t row;
    for (row = 0; row < rows; row++) memcpy(y + 4 * total * row, x + 4 * count * row, 4 * (size_t)count);
}
