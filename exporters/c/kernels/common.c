/* Rounding to a quantizer's grid: docs/c-inference.md, section 3. */

#if (-1 >> 1) != -1
#error "this code needs a compiler that shifts negative numbers arithmetically"
#endif

/* sum * multiplier / 2^shift, rounded to nearest, ties to even, then moved and clipped. */
static uint8_t to_grid(int64_t product, int32_t shift, int32_t zero_point, int32_t low, int32_t high) {
    const int64_t half = (int64_t)1 << (shift - 1);
    const int64_t rest = product & (2 * half - 1);
    int64_t steps = product >> shift;
    if (rest > half || (rest == half && (steps & 1) != 0)) steps++;
    steps += zero_point;
    if (steps < low) steps = low;
    if (steps > high) steps = high;
    return (uint8_t)steps;
}
