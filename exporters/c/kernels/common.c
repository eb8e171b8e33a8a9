/* Rounding to a quantizer's grid: docs/c-inference.md, section 3. */

#if (-1 >> 1) != -1
#error "this code needs a compiler that shifts negative numbers arithmetically"
#endif

/* product / 2^shift, rounded to nearest, ties to even, then moved and clipped. */
static int32_t to_grid(int64_t product, int64_t shift, int32_t zero_point, int32_t low, int32_t high) {
    const int64_t below_half = ((int64_t)1 << (shift - 1)) - 1;
    const int64_t is_odd = (product >> shift) & 1; /* of the integer below: then half goes up */
    int64_t steps = ((product + below_half + is_odd) >> shift) + zero_point;
    if (steps < low) steps = low;
    if (steps > high) steps = high;
    return (int32_t)steps;
}
