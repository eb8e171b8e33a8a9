enum { PLUS, MINUS, TIMES, OVER, LARGER, SMALLER, GREATER };

/* Four axes of the output, outermost first, three numbers each: its size, and how far apart neighbours are in a and b. */
static void binary(int32_t kind, const uint8_t *a, const uint8_t *b, uint8_t *y, const int32_t *axes) {
    int32_t i[4], at = 0;
    for (i[0] = 0; i[0] < axes[0]; i[0]++)
        for (i[1] = 0; i[1] < axes[3]; i[1]++)
            for (i[2] = 0; i[2] < axes[6]; i[2]++)
                for (i[3] = 0; i[3] < axes[9]; i[3]++) {
                    const float p = load(a, i[0] * axes[1] + i[1] * axes[4] + i[2] * axes[7] + i[3] * axes[10]);
                    const float q = load(b, i[0] * axes[2] + i[1] * axes[5] + i[2] * axes[8] + i[3] * axes[11]);
                    float found = p < q ? p : q;
                    if (kind == PLUS) found = p + q;
                    if (kind == MINUS) found = p - q;
                    if (kind == TIMES) found = p * q;
                    if (kind == OVER) found = p / q;
                    if (kind == GREATER) found = p > q ? 1.0f : 0.0f;
                    if (kind == LARGER) found = p > q ? p : q;
                    save(y, at++, found);
                }
}
