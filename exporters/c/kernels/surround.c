enum { MIRRORED, NEAREST, AROUND }; /* what is outside: as beside the border, without it; the border; the other end */

static int32_t place_inside(int32_t at, int32_t size, int32_t how) {
    if (at >= 0 && at < size) return at;
    if (how == MIRRORED) return at < 0 ? -at : 2 * size - 2 - at;
    if (how == NEAREST) return at < 0 ? 0 : size - 1;
    return at < 0 ? at + size : at - size;
}

/* Four axes of the output, outermost first, four numbers each: its size, where it begins in the source, the source's size,
   and how many bytes neighbours are apart there. At each place there are `run` bytes. */
static void surround(const uint8_t *x, uint8_t *y, const int32_t *axes, int32_t how, int32_t run) {
    int32_t i[4];
    for (i[0] = 0; i[0] < axes[0]; i[0]++)
        for (i[1] = 0; i[1] < axes[4]; i[1]++)
            for (i[2] = 0; i[2] < axes[8]; i[2]++)
                for (i[3] = 0; i[3] < axes[12]; i[3]++, y += run) {
                    int32_t from = 0, k;
                    for (k = 0; k < 4; k++)
                        from += place_inside(axes[4 * k + 1] + i[k], axes[4 * k + 2], how) * axes[4 * k + 3];
                    memcpy(y, x + from, (size_t)run);
                }
}
