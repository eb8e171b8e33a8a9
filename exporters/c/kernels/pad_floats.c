/* As `take`, of floats; what lies outside becomes `fill`. */
static void pad_floats(const uint8_t *x, uint8_t *y, const int32_t *axes, float fill) {
    int32_t i[4], at = 0;
    for (i[0] = 0; i[0] < axes[0]; i[0]++)
        for (i[1] = 0; i[1] < axes[5]; i[1]++)
            for (i[2] = 0; i[2] < axes[10]; i[2]++)
                for (i[3] = 0; i[3] < axes[15]; i[3]++) {
                    int32_t from = 0, inside = 1, k;
                    for (k = 0; k < 4; k++) {
                        const int32_t one = axes[5 * k + 1] + i[k] * axes[5 * k + 2];
                        if (one < 0 || one >= axes[5 * k + 3]) inside = 0;
                        from += one * axes[5 * k + 4];
                    }
                    save(y, at++, inside ? load(x, from) : fill);
                }
}
