/* Rounds the sums of `count` filters from number c on. */
static void round_sums(const layer_t *l, const int32_t *restrict sums, int32_t c, int32_t count, uint8_t *restrict out) {
    const int32_t *const multiplier = l->multiplier + c * l->each;
    const int32_t first = multiplier[0], shift = l->shift, zero = l->out_zero, low = l->low, high = l->high;
    int32_t i;
    if (l->each) {
        for (i = 0; i < count; i++) out[i] = to_grid((int64_t)sums[i] * multiplier[i], shift, zero, low, high);
    } else {
        for (i = 0; i < count; i++) out[i] = to_grid((int64_t)sums[i] * first, shift, zero, low, high);
    }
}
