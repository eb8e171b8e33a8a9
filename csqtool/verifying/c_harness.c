/* Runs an exported model: PROGRAM IN OUT LOG COUNT FORCED FILL.

   IN holds for each sample its float32 values and, if FORCED is 1, the integers to put in place of those of each quantizer,
   in the order in which they are computed. OUT gets for each sample the input as the model reads it, each quantizer's
   integers (with MODEL_TRACE; of layers of floats, their bytes) and the float output. LOG gets what the first sample shows: quantizers and decoded filters. FILL is what the
   arena holds before each sample. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

void model_trace_values(const char *place, uint8_t *values, int32_t rank, const int32_t *sizes_and_axes);
void model_trace_filter(const char *layer, int32_t filter, const int8_t *integers, int32_t count, int32_t next,
                        int32_t bias, int32_t multiplier, int32_t shift, float step);

#ifdef MODEL_INPUT_TYPE /* the input is not quantized: floats, or whole numbers, which are given as floats */
typedef MODEL_INPUT_TYPE input_t;
static void prepare(const float *values, input_t *input) {
    long i;
    for (i = 0; i < MODEL_INPUT_SIZE; i++) input[i] = (input_t)values[i];
}
#else
typedef uint8_t input_t;
static void prepare(const float *values, input_t *input) { model_quantize_input(values, input); }
#endif

static FILE *in, *out, *sample_log;
static int forced;

static void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(3);
}

static void take(void *to, size_t count) {
    if (fread(to, 1, count, in) != count) fail("the input is too short");
}

static void put(FILE *to, const void *from, size_t count) {
    if (fwrite(from, 1, count, to) != count) fail("cannot write");
}

static void put_name(char kind, const char *name) {
    const uint32_t length = (uint32_t)strlen(name);
    put(sample_log, &kind, 1);
    put(sample_log, &length, sizeof length);
    put(sample_log, name, length);
}

void model_trace_values(const char *place, uint8_t *values, int32_t rank, const int32_t *sizes_and_axes) {
    size_t count = 1;
    int32_t i;
    for (i = 0; i < rank; i++) count *= (size_t)sizes_and_axes[i];
    if (sample_log) {
        put_name('P', place);
        put(sample_log, &rank, sizeof rank);
        put(sample_log, sizes_and_axes, 2 * (size_t)rank * sizeof *sizes_and_axes);
    }
    put(out, values, count);
    if (forced) take(values, count);
}

void model_trace_filter(const char *layer, int32_t filter, const int8_t *integers, int32_t count, int32_t next,
                        int32_t bias, int32_t multiplier, int32_t shift, float step) {
    const int32_t numbers[] = {filter, next ? 2 * count : count, bias, multiplier, shift};
    if (!sample_log) return;
    put_name('F', layer);
    put(sample_log, numbers, sizeof numbers);
    put(sample_log, &step, sizeof step);
    put(sample_log, integers, (size_t)count);
    if (next) put(sample_log, integers + next, (size_t)count); /* nine bits: the lowest, and the rest */
}

int main(int argc, char **argv) {
    float *values = malloc(MODEL_INPUT_SIZE * sizeof *values), *output = malloc(MODEL_OUTPUT_SIZE * sizeof *output);
    input_t *input = malloc(MODEL_INPUT_SIZE * sizeof *input);
    uint8_t *arena = malloc(MODEL_ARENA_SIZE);
    long count, i;
    if (argc != 7 || !values || !output || !input || !arena) return 2;
    in = fopen(argv[1], "rb");
    out = fopen(argv[2], "wb");
    sample_log = fopen(argv[3], "wb");
    count = atol(argv[4]);
    forced = atoi(argv[5]);
    if (!in || !out || !sample_log) return 2;
    for (i = 0; i < count; i++) {
        memset(arena, atoi(argv[6]), MODEL_ARENA_SIZE);
        take(values, MODEL_INPUT_SIZE * sizeof *values);
        prepare(values, input);
        put(out, input, MODEL_INPUT_SIZE * sizeof *input);
        if (forced) take(input, MODEL_INPUT_SIZE * sizeof *input);
        model_run(input, output, arena);
        put(out, output, MODEL_OUTPUT_SIZE * sizeof *output);
        if (sample_log && fclose(sample_log)) fail("cannot write");
        sample_log = NULL;
    }
    if (sample_log) fclose(sample_log);
    free(values);
    free(output);
    free(input);
    free(arena);
    return fclose(out) != 0;
}
