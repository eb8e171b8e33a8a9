/* Four axes of the output, outermost first, five numbers each: its size; where it begins in the source, its stride, the
   source's size, and how far apart neighbours are there. What lies outside becomes `fill`. */
static void take(const uint8_t *x, uint8_t *y, const int32_t *axes, int32_t fill) {
    const int32_t *const last = axes + 15;
    const int32_t side_by_side = last[2] == 1 && last[4] == 1 && last[1] >= 0 && last[1] + last[0] <= last[3];
    int32_t i[4];
    for (i[0] = 0; i[0] < axes[0]; i[0]++)
        for (i[1] = 0; i[1] < axes[5]; i[1]++)
            for (i[2] = 0; i[2] < axes[10]; i[2]++, y += last[0]) {
                int32_t from = 0, inside = 1, k;
                for (k = 0; k < 3; k++) {
                    const int32_t at = axes[5 * k + 1] + i[k] * axes[5 * k + 2];
                    if (at < 0 || at >= axes[5 * k + 3]) inside = 0;
                    from += at * axes[5 * k + 4];
                }
                if (!inside) {
                    memset(y, fill, (size_t)last[0]);
                } else if (side_by_side) {
                    memcpy(y, x + from + last[1], (size_t)last[0]);
                } else {
                    for (i[3] = 0; i[3] < last[0]; i[3]++) {
                        const int32_t at = last[1] + i[3] * last[2];
                        y[i[3]] = at < 0 || at >= last[3] ? (uint8_t)fill : x[from + at * last[4]];
                    }
                }
            }
}
