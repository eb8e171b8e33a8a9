/* x / scale rounded to nearest, ties to even, then moved and clipped; what is not a number becomes the lowest integer. */
static uint8_t quantize(float x, float scale, int32_t zero_point, int32_t low, int32_t high) {
    float steps = x / scale;
    float rest;
    int32_t whole;
    if (!(steps > -1024.0f)) steps = -1024.0f;
    if (steps > 1024.0f) steps = 1024.0f;
    whole = (int32_t)steps;
    rest = steps - (float)whole;
    if (rest > 0.5f || (rest == 0.5f && (whole & 1) != 0)) whole++;
    if (rest < -0.5f || (rest == -0.5f && (whole & 1) != 0)) whole--;
    whole += zero_point;
    if (whole < low) whole = low;
    if (whole > high) whole = high;
    return (uint8_t)whole;
}
