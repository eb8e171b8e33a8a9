/* Rounds the sums of at most 32 filters from number c on. */
static void round_sums(const layer_t *l, const int32_t *restrict sums, int32_t c, int32_t count, uint8_t *restrict out) {
    const int32_t *const restrict multiplier = l->multiplier + c * l->each;
    const int32_t first = multiplier[0], shift = l->shift, zero = l->out_zero, low = l->low, high = l->high;
    int32_t i;
#ifndef __ARM_FEATURE_SIMD32 /* bytes apart: vectors hold more of them than there are filters */
    int32_t whole[32];
    if (l->each) {
        for (i = 0; i < count; i++) whole[i] = to_grid((int64_t)sums[i] * multiplier[i], shift, zero, low, high);
    } else {
        for (i = 0; i < count; i++) whole[i] = to_grid((int64_t)sums[i] * first, shift, zero, low, high);
    }
    for (i = 0; i < count; i++) out[i] = (uint8_t)whole[i];
#else
    if (l->each) {
        for (i = 0; i < count; i++) out[i] = (uint8_t)to_grid((int64_t)sums[i] * multiplier[i], shift, zero, low, high);
    } else {
        for (i = 0; i < count; i++) out[i] = (uint8_t)to_grid((int64_t)sums[i] * first, shift, zero, low, high);
    }
#endif
}
