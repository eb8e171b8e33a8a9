enum { NEGATIVE, ABSOLUTE, RECTIFIED, EXPONENTIAL, ERROR_FUNCTION, SIGMOID, TANGENT };

static float unary_of(int32_t kind, float x) {
    const float size = x < 0.0f ? -x : x;
    float t, y;
    if (kind == NEGATIVE) return -x;
    if (kind == ABSOLUTE) return size;
    if (kind == RECTIFIED) return x > 0.0f ? x : 0.0f;
    if (kind == EXPONENTIAL) return exponential(x);
    if (kind == SIGMOID) return 1.0f / (1.0f + exponential(-x));
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
