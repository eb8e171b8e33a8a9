/* Prints a checksum of each tensor: the CRC-32 of its decoded elements, little-endian.

       cc -std=c99 -O2 example.c model.c -o example && ./example */

#include <stdio.h>

#include "csq.h"
#include "model.h"

int main(void) {
    static const char *const dtypes[] = {"BOOL", "U8",  "I8",  "U16", "I16", "U32", "I32",
                                         "U64",  "I64", "F16", "F32", "F64", "C64"};
    static csq_decoder decoder;
    csq_file file;
    csq_tensor tensor;
    csq_status status = csq_open(&file, csq_model, csq_model_size);
    if (status == CSQ_OK) status = csq_first(&file, &tensor);
    for (; status == CSQ_OK; status = csq_next(&file, &tensor)) {
        uint32_t crc;
        unsigned i;
        status = csq_checksum(&tensor, &decoder, &crc);
        if (status != CSQ_OK) break;
        printf("%08lx %s [", (unsigned long)crc, dtypes[tensor.dtype]);
        for (i = 0; i < tensor.rank; i++) printf(i ? ",%llu" : "%llu", (unsigned long long)tensor.shape[i]);
        printf("] %s\n", tensor.name);
    }
    if (status != CSQ_END) {
        fprintf(stderr, "model: %s\n", csq_message(status));
        return 1;
    }
    return 0;
}
