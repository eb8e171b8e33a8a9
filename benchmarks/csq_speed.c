/* Decodes the tensor "w" of each file named, and copies as many bytes; prints the best seconds of CPU of a pass of both. */

#define _POSIX_C_SOURCE 199309L

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "csq.h"

static csq_decoder decoder;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv) {
    int i, pass;
    for (i = 1; i < argc; i++) {
        FILE *stream = fopen(argv[i], "rb");
        uint8_t *data;
        int8_t *out, *copy;
        long size;
        csq_file file;
        csq_tensor tensor;
        double decoding = 1e9, copying = 1e9;
        if (!stream || fseek(stream, 0, SEEK_END) || (size = ftell(stream)) <= 0) return 1;
        rewind(stream);
        data = malloc((size_t)size);
        if (!data || fread(data, 1, (size_t)size, stream) != (size_t)size) return 1;
        fclose(stream);
        if (csq_open(&file, data, (size_t)size) != CSQ_OK || csq_find(&file, &tensor, "w") != CSQ_OK) return 1;
        out = calloc((size_t)tensor.elements, 1);
        copy = calloc((size_t)tensor.elements, 1);
        if (!out || !copy) return 1;
        for (pass = 0; pass < 7; pass++) {
            double begin = now(), middle;
            if (csq_begin(&decoder, &tensor) != CSQ_OK) return 1;
            if (csq_read_i8(&decoder, out, (size_t)tensor.elements) != CSQ_OK) return 1;
            middle = now();
            memcpy(copy, out, (size_t)tensor.elements);
            if (middle - begin < decoding) decoding = middle - begin;
            if (now() - middle < copying) copying = now() - middle;
        }
        printf("%.9f %.9f %d\n", decoding, copying, copy[tensor.elements / 2]);
        free(data);
        free(out);
        free(copy);
    }
    return 0;
}
