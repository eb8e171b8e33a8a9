/* Numbers in float32, where no quantizer is between two operators: docs/c-inference.md, section 5.2. Each operation is
   rounded, in the order written; floats lie in the arena at any address. */

#if FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16
#error "this code needs a compiler that computes floats in their own precision"
#endif
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

static float load(const uint8_t *from, int32_t index) {
    float value;
    memcpy(&value, from + 4 * index, sizeof value);
    return value;
}

static void save(uint8_t *to, int32_t index, float value) { memcpy(to + 4 * index, &value, sizeof value); }
