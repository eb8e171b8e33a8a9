/* a where the condition is above 0, else b. */
static void choose(const uint8_t *condition, const uint8_t *a, const uint8_t *b, uint8_t *y, int32_t count) {
    int32_t i;
    for (i = 0; i < count; i++) save(y, i, load(condition, i) > 0.0f ? load(a, i) : load(b, i));
}
