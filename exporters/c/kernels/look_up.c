static void look_up(const uint8_t *x, uint8_t *y, int32_t count, const uint8_t *table) {
    int32_t i;
    for (i = 0; i < count; i++) y[i] = table[x[i]];
}
