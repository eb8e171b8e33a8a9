/* Reads the files named on the command line through every function of csq.h, as the tests and fuzzers do.

   For each tensor: the checksum of its decoded elements, after every way to read it gave the same elements. A
   file is copied to memory of exactly its size, so that a sanitizer sees any access beyond it. With
   -DCSQ_FUZZ it is a libFuzzer target instead. */

#include <stdio.h>
#include <stdlib.h>

#include "csq.h"

static csq_decoder decoder;

/* Read an integer tensor in pieces of several sizes and as every type; 0 if anything differs from the whole. */
static int same_in_pieces(const csq_tensor *tensor) {
    size_t n = (size_t)tensor->elements, at = 0, piece = 1;
    int16_t *whole = malloc(n * 2 + 2), *pieces = malloc(n * 2 + 2);
    int8_t *narrow = malloc(n + 1);
    float *floats = malloc(n * 4 + 4), half_scale = 0.5f;
    int same = whole && pieces && narrow && floats, is_i8 = tensor->dtype == CSQ_I8;
    csq_status a, b;
    a = csq_begin(&decoder, tensor);
    if (a == CSQ_OK) a = csq_read_i16(&decoder, whole, n);
    b = csq_begin(&decoder, tensor);
    while (b == CSQ_OK && at < n) {
        size_t now = piece < n - at ? piece : n - at;
        b = csq_read_i16(&decoder, pieces + at, now);
        at += now;
        piece = piece * 3 % 61 + 1;
    }
    same = same && a == b;
    if (a == CSQ_OK) {
        size_t i;
        same = same && csq_read_i16(&decoder, pieces, 1) == CSQ_END;
        same = same && !memcmp(whole, pieces, 2 * n);
        same = same && csq_begin(&decoder, tensor) == CSQ_OK;
        same = same && csq_read_float(&decoder, half_scale, floats, n) == CSQ_OK;
        for (i = 0; same && i < n; i++) same = floats[i] == (float)whole[i] * half_scale;
        same = same && csq_begin(&decoder, tensor) == CSQ_OK;
        if (same && is_i8) same = csq_read_i8(&decoder, narrow, n) == CSQ_OK;
        for (i = 0; same && is_i8 && i < n; i++) same = narrow[i] == whole[i];
    }
    free(whole);
    free(pieces);
    free(narrow);
    free(floats);
    return same;
}

static int readable_as_float(csq_dtype dtype) {
    return dtype != CSQ_U64 && dtype != CSQ_I64 && dtype != CSQ_F64 && dtype != CSQ_C64;
}

typedef enum { AS_FLOAT, AS_I16, AS_I8 } reading;

static csq_status read_some(reading type, float *out, size_t count) {
    int16_t wide[8] = {0};
    int8_t narrow[8] = {0};
    csq_status status;
    size_t i;
    if (type == AS_FLOAT) return csq_read_float(&decoder, 1.0f, out, count);
    status = type == AS_I16 ? csq_read_i16(&decoder, wide, count) : csq_read_i8(&decoder, narrow, count);
    for (i = 0; i < count; i++) out[i] = type == AS_I16 ? (float)wide[i] : (float)narrow[i];
    return status;
}

/* Seek to every element, the end included, and to where the decoder is already, each time reading on from there; 0 if
   anything differs from `whole`. A damaged tensor gives 0, too, but is read all the same. */
static int same_after_seeks(const csq_tensor *tensor, const float *whole, reading type) {
    int in_order = tensor->encoding == CSQ_RANS || tensor->encoding == CSQ_PRUNED || tensor->encoding == CSQ_CONTEXT;
    int same = csq_begin(&decoder, tensor) == CSQ_OK;
    size_t n = (size_t)tensor->elements, i, count = 0, at = 0;
    float some[8];
    for (i = 0; i <= n; i++) {
        csq_status elsewhere;
        if (!in_order) at = i % 2 ? n - i / 2 : i / 2; /* from both ends to the middle */
        same = csq_seek(&decoder, at) == CSQ_OK && same;
        same = csq_seek(&decoder, at) == CSQ_OK && same;
        elsewhere = csq_seek(&decoder, n + 1);
        same = same && elsewhere == (in_order ? CSQ_TYPE : CSQ_END);
        if (in_order && at) same = csq_seek(&decoder, at - 1) == CSQ_TYPE && same;
        count = n - at < i % 7 + 1 ? n - at : i % 7 + 1;
        same = read_some(type, some, count) == CSQ_OK && same;
        same = same && !memcmp(some, whole + at, count * sizeof *some);
        at += count;
    }
    return same && (at < n || csq_read_float(&decoder, 1.0f, some, 1) == CSQ_END);
}

/* Read a tensor from every element on, as every type that it can be read as; 0 if the results differ. */
static int same_from_anywhere(const csq_tensor *tensor, int integers) {
    size_t n = (size_t)tensor->elements;
    float *whole = calloc(n + 1, sizeof *whole);
    csq_status status = csq_begin(&decoder, tensor);
    int same = whole != NULL, type;
    if (status == CSQ_OK) status = csq_read_float(&decoder, 1.0f, whole, n);
    for (type = AS_FLOAT; same && type <= (tensor->dtype == CSQ_I8 ? AS_I8 : integers ? AS_I16 : AS_FLOAT); type++)
        same = same_after_seeks(tensor, whole, (reading)type) == (status == CSQ_OK);
    free(whole);
    return same;
}

/* Read all scales and biases, if the file is an inference file; 0 if a stream that is accepted holds a bad scale. */
static int reads_channels(const csq_file *file) {
    csq_channels channels;
    csq_tensor tensor;
    csq_status status = csq_channels_begin(&channels, file);
    if (status == CSQ_OK) status = csq_first(file, &tensor);
    for (; status == CSQ_OK; status = csq_next(file, &tensor)) {
        uint32_t i;
        if (tensor.encoding == CSQ_RAW || tensor.encoding == CSQ_HALF) continue;
        if (csq_channels_next(&channels, &tensor) != CSQ_OK) return 1;
        for (i = 0; i < channels.count; i++) {
            float scale = csq_scale(&channels, i), bias = 0;
            if (csq_has_bias(&channels))
                bias = csq_has_integer_bias(&channels) ? (float)csq_bias_i32(&channels, i) : csq_bias_float(&channels, i);
            if (!(scale > 0 && scale <= 3.4028235e38f && bias - bias == 0)) return 0;
        }
    }
    return 1;
}

static int dump(const uint8_t *data, size_t size, int print) {
    csq_file file;
    csq_tensor tensor;
    csq_status status = csq_open(&file, data, size);
    if (status == CSQ_OK && !reads_channels(&file)) abort();
    if (status == CSQ_OK) status = csq_first(&file, &tensor);
    for (; status == CSQ_OK; status = csq_next(&file, &tensor)) {
        uint32_t crc;
        csq_tensor found;
        csq_status decoded = csq_checksum(&tensor, &decoder, &crc);
        int integers = tensor.dtype <= CSQ_I16 && tensor.dtype != CSQ_U16;
        if (csq_find(&file, &found, tensor.name) != CSQ_OK || found.stored != tensor.stored) abort();
        /* What is damaged is decoded all the same: no input may do harm. */
        if (integers && tensor.elements < 1 << 20 && !same_in_pieces(&tensor)) abort();
        if (tensor.elements < 1 << 20 && readable_as_float(tensor.dtype) && !same_from_anywhere(&tensor, integers))
            abort();
        if (decoded != CSQ_OK) status = decoded;
        else if (print) printf("%08lx %s\n", (unsigned long)crc, tensor.name);
        if (status != CSQ_OK && print) break;
    }
    return status == CSQ_END ? 0 : (int)status;
}

#ifdef CSQ_FUZZ

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void put_u32(uint8_t *p, uint32_t v) {
    unsigned i;
    for (i = 0; i < 4; i++) p[i] = (uint8_t)(v >> 8 * i);
}

/* Make the checksums of the structure right, or nothing that they guard would ever be reached. */
static void repair(uint8_t *data, size_t size) {
    size_t at = 88, i;
    if (size < 88) return;
    for (i = 0; i < 3; i++) {
        size_t length = csq__u32(data + 16 + 4 * i);
        if (at > size || length > size - at) break;
        put_u32(data + 72 + 4 * i, csq_crc32(0, data + at, length));
        at += (length + 7) / 8 * 8;
    }
    put_u32(data + 84, csq_crc32(0, data, 84));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *copy = calloc(size ? size : 1, 1);
    if (!copy) return 0;
    if (size) memcpy(copy, data, size);
    dump(copy, size, 0);
    repair(copy, size);
    dump(copy, size, 0);
    free(copy);
    return 0;
}

#else

int main(int argc, char **argv) {
    int i, worst = 0;
    for (i = 1; i < argc; i++) {
        FILE *stream = fopen(argv[i], "rb");
        uint8_t *data;
        long size;
        int status;
        if (!stream || fseek(stream, 0, SEEK_END) || (size = ftell(stream)) < 0) return 100;
        rewind(stream);
        data = malloc(size ? (size_t)size : 1);
        if (!data || fread(data, 1, (size_t)size, stream) != (size_t)size) return 100;
        fclose(stream);
        status = dump(data, (size_t)size, 1);
        printf("%s: %s\n", argv[i], csq_message((csq_status)(status ? status : 0)));
        if (status) worst = 1;
        free(data);
    }
    return worst;
}

#endif
