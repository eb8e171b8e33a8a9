static void save(uint8_t *to, int32_t index, float value) { memcpy(to + 4 * index, &value, sizeof value); }
