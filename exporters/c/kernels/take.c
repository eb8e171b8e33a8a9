/* Four axes of the output, outermost first, five numbers each: its size; where it begins in the source, its stride, the
   source's size, and how far apart neighbours are there. What lies outside becomes `fill`. */
static void take(const uint8_t *x, uint8_t *y, const int32_t *axes, int32_t fill) {
    int32_t i[4];
    for (i[0] = 0; i[0] < axes[0]; i[0]++)
        for (i[1] = 0; i[1] < axes[5]; i[1]++)
            for (i[2] = 0; i[2] < axes[10]; i[2]++)
                for (i[3] = 0; i[3] < axes[15]; i[3]++) {
                    int32_t from = 0, inside = 1, k;
                    for (k = 0; k < 4; k++) {
                        const int32_t at = axes[5 * k + 1] + i[k] * axes[5 * k + 2];
                        if (at < 0 || at >= axes[5 * k + 3]) inside = 0;
                        from += at * axes[5 * k + 4];
                    }
                    *y++ = inside ? x[from] : (uint8_t)fill;
                }
}
