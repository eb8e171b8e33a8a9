enum { NEGATIVE, ABSOLUTE, RECTIFIED, EXPONENTIAL, ERROR_FUNCTION, SIGMOID, TANGENT, SOFTPLUS };

/* log(1 + exp(x)): the larger of x and 0, plus 2 artanh(s) as a series, s = t / (2 + t), t = exp(-|x|). */
static float softplus_of(float x, float size) {
    const float t = exponential(-size), s = t / (2.0f + t), square = s * s;
    float y = 7.6923077e-2f;
    y = y * square + 9.0909091e-2f;
    y = y * square + 1.1111111e-1f;
    y = y * square + 1.4285715e-1f;
    y = y * square + 2.0e-1f;
    y = y * square + 3.3333334e-1f;
    y = y * square + 1.0f;
    return (x > 0.0f ? x : 0.0f) + 2.0f * s * y;
}

static float unary_of(int32_t kind, float x) {
    const float size = x < 0.0f ? -x : x;
    float t, y;
    if (kind == NEGATIVE) return -x;
    if (kind == ABSOLUTE) return size;
    if (kind == RECTIFIED) return x > 0.0f ? x : 0.0f;
    if (kind == EXPONENTIAL) return exponential(x);
    if (kind == SIGMOID) return 1.0f / (1.0f + exponential(-x));
    if (kind == SOFTPLUS) return softplus_of(x, size);
    if (kind == TANGENT) {
        t = exponential(-2.0f * size);
        y = (1.0f - t) / (1.0f + t);
    } else {
        t = 1.0f / (1.0f + 0.3275911f * size);
        y = 1.061405429f;
        y = y * t - 1.453152027f;
        y = y * t + 1.421413741f;
        y = y * t - 0.284496736f;
        y = y * t + 0.254829592f;
        y = 1.0f - y * t * exponential(-(x * x));
    }
    return x < 0.0f ? -y : y;
}

static void unary(int32_t kind, const uint8_t *x, uint8_t *y, int32_t count) {
    int32_t i;
    for (i = 0; i < count; i++) save(y, i, unary_of(kind, load(x, i)));
}
