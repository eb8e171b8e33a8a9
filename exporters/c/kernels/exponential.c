static float exponential(float x) {
    float rest, power, two_to_k;
    uint32_t bits;
    int32_t k;
    if (!(x > -87.0f)) x = -87.0f;
    if (x > 88.0f) x = 88.0f;
    k = (int32_t)(x * 1.44269504f + (x < 0.0f ? -0.5f : 0.5f));
    rest = x - (float)k * 0.693359375f;
    rest = rest - (float)k * -2.12194440e-4f;
    power = 1.9875691500e-4f;
    power = power * rest + 1.3981999507e-3f;
    power = power * rest + 8.3334519073e-3f;
    power = power * rest + 4.1665795894e-2f;
    power = power * rest + 1.6666665459e-1f;
    power = power * rest + 5.0000001201e-1f;
    power = power * rest * rest + rest + 1.0f;
    bits = (uint32_t)(k + 127) << 23;
    memcpy(&two_to_k, &bits, sizeof bits);
    return power * two_to_k;
}
