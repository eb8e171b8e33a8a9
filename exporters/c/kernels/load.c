/* Numbers in float32, where no quantizer is between two operators: docs/c-inference.md, section 5.2. They lie in the
   arena at any address. */
static float load(const uint8_t *from, int32_t index) {
    float value;
    memcpy(&value, from + 4 * index, sizeof value);
    return value;
}
