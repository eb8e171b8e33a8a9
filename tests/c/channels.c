/* Prints the scales and biases of inference files, and what csq.h says of each. */

#include <stdio.h>
#include <stdlib.h>

#include "csq.h"

static csq_status print_channels(const uint8_t *data, size_t size) {
    csq_file file;
    csq_tensor tensor;
    csq_channels channels;
    csq_status status = csq_open(&file, data, size);
    if (status == CSQ_OK) status = csq_channels_begin(&channels, &file);
    if (status == CSQ_OK) status = csq_first(&file, &tensor);
    for (; status == CSQ_OK; status = csq_next(&file, &tensor)) {
        uint32_t i;
        if (tensor.encoding == CSQ_RAW || tensor.encoding == CSQ_HALF) continue;
        if ((status = csq_channels_next(&channels, &tensor)) != CSQ_OK) break;
        printf("%s", tensor.name);
        for (i = 0; i < channels.count; i++) printf(" %a", csq_scale(&channels, i));
        for (i = 0; i < channels.count && csq_has_bias(&channels); i++) {
            if (csq_has_integer_bias(&channels)) printf(" %ld", (long)csq_bias_i32(&channels, i));
            else printf(" %a", csq_bias_float(&channels, i));
        }
        printf("\n");
    }
    if (status == CSQ_END) status = channels.next == channels.end ? CSQ_OK : CSQ_DAMAGED;
    return status;
}

int main(int argc, char **argv) {
    int i;
    for (i = 1; i < argc; i++) {
        FILE *stream = fopen(argv[i], "rb");
        uint8_t *data;
        long size;
        if (!stream || fseek(stream, 0, SEEK_END) || (size = ftell(stream)) < 0) return 2;
        rewind(stream);
        data = malloc(size ? (size_t)size : 1); /* of this size, so that a sanitizer sees an access beyond the file */
        if (!data || fread(data, 1, (size_t)size, stream) != (size_t)size) return 2;
        printf("%s: %s\n", argv[i], csq_message(print_channels(data, (size_t)size)));
        free(data);
        fclose(stream);
    }
    return 0;
}
