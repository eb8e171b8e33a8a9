/* `outer` runs of `count` values, to one in every `y_run` values; table may be NULL. */
static void copy(const uint8_t *x, uint8_t *y, int32_t outer, int32_t count, int32_t y_run, const uint8_t *table) {
    int32_t i, j;
    for (i = 0; i < outer; i++, x += count, y += y_run)
        for (j = 0; j < count; j++) y[j] = table ? table[x[j]] : x[j];
}
