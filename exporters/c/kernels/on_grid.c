/* Rounding to a quantizer's grid in float32: docs/c-inference.md, section 3. */

/* Steps rounded to nearest, ties to even, then moved and clipped. Next to 1.5 * 2^23 floats are 1 apart, so that adding
   it rounds, and bits count steps. Farther away bits still grow with numbers, and those of negative ones are below 0:
   clipping holds for all. */
static int32_t on_grid(float steps, int32_t zero_point, int32_t low, int32_t high) {
    const int32_t none = 0x4b400000 - zero_point; /* the bits of 1.5 * 2^23 */
    int32_t bits;
    steps = steps + 12582912.0f;
    memcpy(&bits, &steps, sizeof bits);
    if (bits < none + low) bits = none + low;
    if (bits > none + high) bits = none + high;
    return bits - none;
}
