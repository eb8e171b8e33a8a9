/* Rounds the sums of at most 32 filters from number c on, in float32. */
static void round_sums(const layer_t *l, const int32_t *restrict sums, int32_t c, int32_t count, uint8_t *restrict out) {
    const float *const restrict factor = l->steps + c * l->each;
    const int32_t each = l->each, zero = l->out_zero, low = l->low, high = l->high;
    int32_t i;
#ifndef __ARM_FEATURE_SIMD32 /* as where multipliers are integers */
    const float first = factor[0];
    int32_t whole[32];
    if (each) {
        for (i = 0; i < count; i++) whole[i] = on_grid((float)sums[i] * factor[i], zero, low, high);
    } else {
        for (i = 0; i < count; i++) whole[i] = on_grid((float)sums[i] * first, zero, low, high);
    }
    for (i = 0; i < count; i++) out[i] = (uint8_t)whole[i];
#else
    for (i = 0; i < count; i++) out[i] = (uint8_t)on_grid((float)sums[i] * factor[i * each], zero, low, high);
#endif
}
