/* csq.h: reads .csq files of versions 2 and 3. C99, one header, no allocation, no dependency.

   The format is specified in docs/csq-format.md. A file is read where it lies in memory (flash, a mapped
   file); every pointer handed out points into it. No input whatsoever leads to undefined behaviour: csq_open
   checks the structure once, decoding checks the rest, and a function returns CSQ_OK or says what is wrong.

       csq_file file;
       csq_tensor tensor;
       static csq_decoder decoder;                     // about 14 kB: tables and states of the entropy coders
       csq_status status = csq_open(&file, data, size);
       if (status == CSQ_OK) status = csq_find(&file, &tensor, "conv1.weight");
       if (status == CSQ_OK) status = csq_check(&tensor);                     // CRC-32 of the stored bytes
       if (status == CSQ_OK) status = csq_begin(&decoder, &tensor);
       while (status == CSQ_OK && rows-- > 0) status = csq_read_i8(&decoder, row, row_length);

   Not checked here, because it takes an inflater, a JSON parser and SHA-256: that the metadata and the ONNX
   graph inflate, and that both they and the tensors are the finalized model with file.finalized_sha256.

   Licence: Apache-2.0. */

#ifndef CSQ_H
#define CSQ_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define CSQ_API static inline

enum {
    CSQ_MAX_RANK = 32,
    CSQ_MAX_NAME = 255,
    CSQ_MAX_TENSORS = 65536,
    CSQ_MAX_TABLE = 32 << 20,
    CSQ_MAX_PART = 1 << 30,
    CSQ_MAX_EXPANSION = 64,
    CSQ_MAX_SYMBOLS = 512,
    CSQ_MAX_LANES = 1024,
    CSQ_SLOTS = 4096,
    CSQ_CONTEXTS = 129,
    CSQ_MAX_CONTEXT_CODED = 1 << 24
};
#define CSQ_MAX_ELEMENTS ((uint64_t)1 << 48)

typedef enum {
    CSQ_OK = 0,
    CSQ_END,         /* no further tensor, or more elements asked for than there are */
    CSQ_NOT_FOUND,   /* no tensor of this name */
    CSQ_NOT_CSQ,     /* the magic is missing */
    CSQ_VERSION,     /* a version that this reader does not know */
    CSQ_TRUNCATED,   /* the file ends too early */
    CSQ_DAMAGED,     /* a checksum differs, or a rule of the format is broken */
    CSQ_TYPE         /* the tensor cannot be read as the type, or from the element, asked for */
} csq_status;

typedef enum {
    CSQ_BOOL, CSQ_U8, CSQ_I8, CSQ_U16, CSQ_I16, CSQ_U32, CSQ_I32, CSQ_U64, CSQ_I64, CSQ_F16, CSQ_F32, CSQ_F64,
    CSQ_C64
} csq_dtype;

typedef enum {
    CSQ_RAW, CSQ_DENSE, CSQ_TERNARY, CSQ_CODEBOOK, CSQ_RANS, CSQ_HALF, CSQ_PRUNED, CSQ_CONTEXT
} csq_encoding;

typedef struct {
    const uint8_t *data;
    size_t size;
    uint32_t tensors;
    uint8_t finalized_sha256[32];
    const uint8_t *metadata; /* zlib stream of JSON */
    size_t metadata_size;
    const uint8_t *graph; /* zlib stream; NULL without one */
    size_t graph_size;
    size_t table, table_end; /* the rows of the tensor table */
    size_t payload;          /* first byte of the first tensor */
} csq_file;

typedef struct {
    char name[CSQ_MAX_NAME + 1]; /* UTF-8, ends with NUL */
    csq_dtype dtype;
    csq_encoding encoding;
    unsigned bits;
    unsigned rank;
    uint64_t shape[CSQ_MAX_RANK];
    uint64_t elements;
    const uint8_t *stored;
    size_t length;
    uint32_t crc32;
    size_t next_row, next_stored; /* where the following tensor is */
} csq_tensor;

typedef struct {
    csq_status status; /* the first error stays */
    csq_dtype dtype;
    csq_encoding encoding;
    unsigned bits;
    uint64_t elements, position;
    const uint8_t *rows, *columns; /* pruned: bits of the indices that are stored; NULL for others */
    uint64_t shape[2], depth;      /* pruned: the first two axes, and the elements of one index of both */
    uint64_t kept, taken;          /* elements that are stored, and how many of them are read */
    const uint8_t *stored;
    size_t length;
    unsigned levels, index_bits; /* codebook */
    uint32_t kernel, width, place, column; /* context coder: elements of a kernel and of a row of it; the next one's */
    int32_t lowest;                /* entropy coders, from here on */
    uint32_t symbols, lanes, lane;
    size_t word; /* byte of the next word */
    uint16_t frequency[CSQ_MAX_SYMBOLS];  /* of the context coder: how probable yes is */
    uint16_t first_slot[CSQ_MAX_SYMBOLS]; /* and how fast that moves */
    uint16_t symbol_of[CSQ_SLOTS];        /* and the last 256 values */
    uint32_t state[CSQ_MAX_LANES];
} csq_decoder;

/* --- bytes ------------------------------------------------------------------------------------------- */

CSQ_API uint32_t csq__u16(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }

CSQ_API uint32_t csq__u32(const uint8_t *p) { return csq__u16(p) | csq__u16(p + 2) << 16; }

CSQ_API uint64_t csq__u64(const uint8_t *p) { return (uint64_t)csq__u32(p) | (uint64_t)csq__u32(p + 4) << 32; }

CSQ_API int32_t csq__i16(const uint8_t *p) { return (int32_t)(csq__u16(p) ^ 0x8000) - 0x8000; }

/* CRC-32 as in zlib and PNG, continued from `crc` (0 to begin). */
CSQ_API uint32_t csq_crc32(uint32_t crc, const void *data, size_t size) {
    static const uint32_t nibble[16] = {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
                                        0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
                                        0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
    const uint8_t *p = (const uint8_t *)data;
    size_t i;
    crc = ~crc;
    for (i = 0; i < size; i++) {
        crc ^= p[i];
        crc = crc >> 4 ^ nibble[crc & 15];
        crc = crc >> 4 ^ nibble[crc & 15];
    }
    return ~crc;
}

/* Whether [p, p + size) is UTF-8: shortest forms, no surrogates, at most U+10FFFF. */
CSQ_API int csq__is_utf8(const uint8_t *p, size_t size) {
    size_t i = 0;
    while (i < size) {
        uint8_t lead = p[i++];
        unsigned more;
        uint32_t point, least;
        if (lead < 0x80) continue;
        if (lead >= 0xc2 && lead < 0xe0) { more = 1; point = lead & 0x1f; least = 0x80; }
        else if (lead >= 0xe0 && lead < 0xf0) { more = 2; point = lead & 0x0f; least = 0x800; }
        else if (lead >= 0xf0 && lead < 0xf5) { more = 3; point = lead & 0x07; least = 0x10000; }
        else return 0;
        if (more > size - i) return 0;
        for (; more; more--, i++) {
            if ((p[i] & 0xc0) != 0x80) return 0;
            point = point << 6 | (p[i] & 0x3f);
        }
        if (point < least || point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) return 0;
    }
    return 1;
}

/* Bytes of one element as it is decoded. */
CSQ_API unsigned csq_item_size(csq_dtype dtype) {
    static const uint8_t sizes[] = {1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 4, 8, 8};
    return sizes[dtype];
}

/* Bytes that `count` (at most 2^48) values of `bits` bits take. */
CSQ_API uint64_t csq__stream_size(uint64_t count, unsigned bits) { return (count * bits + 7) / 8; }

/* --- structure --------------------------------------------------------------------------------------- */

/* Set *next to where the part after [start, start + length) begins; the padding must be zero. */
CSQ_API csq_status csq__skip(const csq_file *file, size_t start, uint64_t length, size_t *next) {
    size_t end, padding;
    if (start > file->size || length > file->size - start) return CSQ_TRUNCATED;
    end = start + (size_t)length;
    padding = (size_t)(-(uint64_t)end & 7);
    if (padding > file->size - end) return CSQ_TRUNCATED;
    for (; padding; padding--, end++)
        if (file->data[end]) return CSQ_DAMAGED;
    *next = end;
    return CSQ_OK;
}

/* Multiply the dimensions. */
CSQ_API csq_status csq__count(csq_tensor *tensor) {
    unsigned i;
    tensor->elements = 1;
    for (i = 0; i < tensor->rank; i++) {
        uint64_t d = tensor->shape[i];
        if (d == 0 || d > CSQ_MAX_ELEMENTS / tensor->elements) return CSQ_DAMAGED;
        tensor->elements *= d;
    }
    return CSQ_OK;
}

/* Check that dtype, encoding, bits and length fit each other. */
CSQ_API csq_status csq__check_encoding(const csq_tensor *t) {
    unsigned width = csq_item_size(t->dtype) * 8;
    unsigned widest = width < 9 ? width : 9;
    switch (t->encoding) {
    case CSQ_RAW:
        if (t->bits != width) return CSQ_DAMAGED;
        break;
    case CSQ_HALF:
        if (t->dtype != CSQ_F32 || t->bits != 16) return CSQ_DAMAGED;
        break;
    default:
        if (t->dtype != CSQ_I8 && t->dtype != CSQ_I16) return CSQ_DAMAGED;
        if (t->encoding == CSQ_TERNARY) widest = 2;
        if (t->bits < 1 || t->bits > widest) return CSQ_DAMAGED;
    }
    if (t->encoding == CSQ_TERNARY) return t->length == (t->elements + 4) / 5 ? CSQ_OK : CSQ_DAMAGED;
    if (t->encoding == CSQ_PRUNED) return t->rank < 2 ? CSQ_DAMAGED : CSQ_OK; /* this stream tells, */
    if (t->encoding == CSQ_CODEBOOK || t->encoding == CSQ_RANS || t->encoding == CSQ_CONTEXT)
        return CSQ_OK; /* and these */
    return t->length == csq__stream_size(t->elements, t->bits) ? CSQ_OK : CSQ_DAMAGED;
}

/* Take a name of at most 255 bytes, UTF-8, if it is allowed: never a part of a path. */
CSQ_API int csq__name(csq_tensor *t, const uint8_t *p, size_t length) {
    size_t i;
    for (i = 0; i < length; i++)
        if (p[i] < 0x20 || p[i] == 0x7f || p[i] == '/' || p[i] == '\\') return 0;
    memcpy(t->name, p, length);
    t->name[length] = 0;
    return length && strcmp(t->name, ".") && strcmp(t->name, "..") && strcmp(t->name, "__metadata__");
}

/* Read the row at `row` of the table, for the tensor stored at `stored`. */
CSQ_API csq_status csq__row(const csq_file *file, csq_tensor *t, size_t row, size_t stored) {
    const uint8_t *p = file->data + row;
    size_t left = file->table_end - row, name_length, i;
    uint64_t length;
    csq_status status;
    if (left < 16) return CSQ_DAMAGED;
    if (p[0] > CSQ_C64 || p[1] > CSQ_CONTEXT || p[3] > CSQ_MAX_RANK) return CSQ_DAMAGED;
    t->dtype = (csq_dtype)p[0];
    t->encoding = (csq_encoding)p[1];
    t->bits = p[2];
    t->rank = p[3];
    t->crc32 = csq__u32(p + 4);
    length = csq__u64(p + 8);
    p += 16;
    left -= 16;
    if (left < 4 * (size_t)t->rank + 1) return CSQ_DAMAGED;
    for (i = 0; i < t->rank; i++) t->shape[i] = csq__u32(p + 4 * i);
    p += 4 * t->rank;
    left -= 4 * t->rank + 1;
    name_length = *p++;
    if (name_length > left || !csq__is_utf8(p, name_length)) return CSQ_DAMAGED;
    if (!csq__name(t, p, name_length)) return CSQ_DAMAGED;
    status = csq__skip(file, stored, length, &t->next_stored);
    if (status != CSQ_OK) return status;
    t->stored = file->data + stored;
    t->length = (size_t)length;
    t->next_row = (size_t)(p - file->data) + name_length;
    status = csq__count(t);
    return status == CSQ_OK ? csq__check_encoding(t) : status;
}

CSQ_API csq_status csq__tensor_at(const csq_file *file, csq_tensor *tensor, size_t row, size_t stored) {
    return row == file->table_end ? CSQ_END : csq__row(file, tensor, row, stored);
}

/* Set `tensor` to the first tensor; CSQ_END if there is none. */
CSQ_API csq_status csq_first(const csq_file *file, csq_tensor *tensor) {
    return csq__tensor_at(file, tensor, file->table, file->payload);
}

/* Set `tensor` to the one that follows it; CSQ_END after the last. */
CSQ_API csq_status csq_next(const csq_file *file, csq_tensor *tensor) {
    return csq__tensor_at(file, tensor, tensor->next_row, tensor->next_stored);
}

/* Set `tensor` to the tensor called `name`. */
CSQ_API csq_status csq_find(const csq_file *file, csq_tensor *tensor, const char *name) {
    csq_status status = csq_first(file, tensor);
    while (status == CSQ_OK && strcmp(tensor->name, name)) status = csq_next(file, tensor);
    return status == CSQ_END ? CSQ_NOT_FOUND : status;
}

/* Read the preamble; check it, and the table, metadata and graph as far as their bytes go. */
CSQ_API csq_status csq__open(csq_file *file) {
    const uint8_t *data = file->data;
    uint32_t sizes[3];
    uint64_t room;
    size_t starts[3], at = 88, i;
    if (file->size < 88) return CSQ_TRUNCATED;
    if (csq_crc32(0, data, 84) != csq__u32(data + 84) || csq__u32(data + 36)) return CSQ_DAMAGED;
    file->tensors = csq__u32(data + 12);
    for (i = 0; i < 3; i++) sizes[i] = csq__u32(data + 16 + 4 * i);
    if (file->tensors > CSQ_MAX_TENSORS || sizes[0] > CSQ_MAX_TABLE) return CSQ_DAMAGED;
    room = ((uint64_t)1 << 20) + 4 * (uint64_t)file->size;
    if (room > CSQ_MAX_PART) room = CSQ_MAX_PART;
    if (csq__u32(data + 28) > room || csq__u32(data + 32) > room) return CSQ_DAMAGED;
    for (i = 0; i < 3; i++) {
        csq_status status = csq__skip(file, starts[i] = at, sizes[i], &at);
        if (status != CSQ_OK) return status;
        if (csq_crc32(0, data + starts[i], sizes[i]) != csq__u32(data + 72 + 4 * i)) return CSQ_DAMAGED;
    }
    memcpy(file->finalized_sha256, data + 40, 32);
    file->table = starts[0];
    file->table_end = starts[0] + sizes[0];
    file->metadata = data + starts[1];
    file->metadata_size = sizes[1];
    file->graph = sizes[2] ? data + starts[2] : NULL;
    file->graph_size = sizes[2];
    file->payload = at;
    return CSQ_OK;
}

/* Whether a tensor's elements, or those of its channels that are stored, are context-coded. */
CSQ_API int csq__context_coded(const csq_tensor *t) {
    return t->encoding == CSQ_CONTEXT || (t->encoding == CSQ_PRUNED && t->length && t->stored[0] == CSQ_CONTEXT);
}

/* Check the structure of the file that lies in [data, data + size): all but the bytes of the tensors. */
CSQ_API csq_status csq_open(csq_file *file, const void *data, size_t size) {
    static const uint8_t magic[8] = {0x89, 'C', 'S', 'Q', '\r', '\n', 0x1a, '\n'};
    csq_tensor tensor;
    csq_status status;
    uint64_t decoded = 0, coded = 0;
    uint32_t count = 0, version;
    char before[CSQ_MAX_NAME + 1] = "";
    memset(file, 0, sizeof *file);
    file->data = (const uint8_t *)data;
    file->size = size;
    if (size == 0 || memcmp(data, magic, size < 8 ? size : 8)) return CSQ_NOT_CSQ;
    if (size < 12) return CSQ_TRUNCATED;
    version = csq__u32(file->data + 8);
    if (version != 2 && version != 3) return CSQ_VERSION;
    if ((status = csq__open(file)) != CSQ_OK) return status;

    tensor.next_row = file->table;
    tensor.next_stored = file->payload;
    while ((status = csq_next(file, &tensor)) == CSQ_OK) {
        if (count++ && strcmp(before, tensor.name) >= 0) return CSQ_DAMAGED;
        memcpy(before, tensor.name, sizeof before);
        decoded += tensor.elements * csq_item_size(tensor.dtype);
        if ((decoded + CSQ_MAX_EXPANSION - 1) / CSQ_MAX_EXPANSION > size) return CSQ_DAMAGED;
        if (csq__context_coded(&tensor)) coded += tensor.elements;
        if (coded > CSQ_MAX_CONTEXT_CODED) return CSQ_DAMAGED;
    }
    if (status != CSQ_END) return status;
    if ((version == 3) != (coded > 0)) return CSQ_DAMAGED; /* such tensors are what version 3 adds */
    return count == file->tensors && tensor.next_stored == size ? CSQ_OK : CSQ_DAMAGED;
}

/* Check the CRC-32 of a tensor's stored bytes. */
CSQ_API csq_status csq_check(const csq_tensor *tensor) {
    return csq_crc32(0, tensor->stored, tensor->length) == tensor->crc32 ? CSQ_OK : CSQ_DAMAGED;
}

/* --- decoding ---------------------------------------------------------------------------------------- */

/* Return field `i` of a stream of `bits` (1 to 12) bits a value, lowest bit first. */
CSQ_API uint32_t csq__field(const uint8_t *stream, uint64_t i, unsigned bits) {
    uint64_t bit = i * bits;
    const uint8_t *p = stream + (size_t)(bit / 8);
    unsigned shift = (unsigned)(bit % 8), have = 8;
    uint32_t value = *p;
    for (; have < shift + bits; have += 8) value |= (uint32_t)*++p << have;
    return value >> shift & ((1u << bits) - 1);
}

CSQ_API csq_status csq__begin_codebook(csq_decoder *d) {
    int32_t half = (int32_t)1 << (d->bits - 1), before = -half - 1;
    size_t head;
    unsigned i;
    if (d->length < 3) return CSQ_DAMAGED;
    d->levels = d->stored[0] + 1u;
    for (d->index_bits = 0; (d->levels - 1) >> d->index_bits; d->index_bits++) {}
    head = 1 + 2 * (size_t)d->levels;
    if (d->length < head || d->length - head != csq__stream_size(d->kept, d->index_bits)) return CSQ_DAMAGED;
    for (i = 0; i < d->levels; i++) {
        int32_t level = csq__i16(d->stored + 1 + 2 * i);
        if (level <= before || level >= half) return CSQ_DAMAGED;
        before = level;
    }
    return CSQ_OK;
}

/* log2 of the lanes that `count` elements have. */
CSQ_API unsigned csq__lanes(uint64_t count) {
    unsigned power = 0;
    uint64_t wanted = count >> 10 < 32 ? count >> 10 : count >> 12 < 32 ? 32 : count >> 12;
    while (power < 10 && wanted >> (power + 1)) power++;
    return power;
}

CSQ_API csq_status csq__begin_rans(csq_decoder *d) {
    uint32_t i, j, slot = 0;
    int32_t half = (int32_t)1 << (d->bits - 1);
    size_t head;
    if (d->length < 5) return CSQ_DAMAGED;
    d->lowest = csq__i16(d->stored);
    d->symbols = csq__u16(d->stored + 2);
    if (d->symbols < 2 || d->symbols > CSQ_MAX_SYMBOLS || d->stored[4] != csq__lanes(d->kept))
        return CSQ_DAMAGED;
    if (d->lowest < -half || d->lowest + (int32_t)d->symbols > half) return CSQ_DAMAGED;
    d->lanes = (uint32_t)1 << d->stored[4];
    d->lane = 0;
    head = 5 + (size_t)csq__stream_size(d->symbols, 12);
    d->word = head + 4 * (size_t)d->lanes;
    if (d->word > d->length || (d->length - d->word) % 2) return CSQ_DAMAGED;
    if (d->symbols % 2 && d->stored[head - 1] >> 4) return CSQ_DAMAGED;
    for (i = 0; i < d->symbols; i++) {
        uint32_t f = csq__field(d->stored + 5, i, 12);
        if (f > CSQ_SLOTS - slot || (!f && (i == 0 || i == d->symbols - 1))) return CSQ_DAMAGED;
        d->frequency[i] = (uint16_t)f;
        d->first_slot[i] = (uint16_t)slot;
        for (j = 0; j < f; j++) d->symbol_of[slot++] = (uint16_t)i;
    }
    if (slot != CSQ_SLOTS) return CSQ_DAMAGED;
    for (i = 0; i < d->lanes; i++) {
        d->state[i] = csq__u32(d->stored + head + 4 * i);
        if (d->state[i] < 65536) return CSQ_DAMAGED;
    }
    return CSQ_OK;
}

CSQ_API csq_status csq__begin_context(csq_decoder *d, const csq_tensor *tensor) {
    unsigned i;
    if (d->length < 4 || d->length % 2) return CSQ_DAMAGED;
    d->state[0] = csq__u32(d->stored);
    if (d->state[0] < 65536) return CSQ_DAMAGED;
    d->word = 4;
    for (i = 0; i < CSQ_CONTEXTS; i++) {
        d->frequency[i] = 32768;
        d->first_slot[i] = 1; /* the shift, and 16 times how often the context was seen */
    }
    d->kernel = d->width = 1;
    for (i = 2; i < tensor->rank; i++) d->kernel *= d->width = (uint32_t)tensor->shape[i];
    d->place = d->column = 0;
    return CSQ_OK;
}

/* Read what a pruned tensor stores; its elements follow in an encoding of their own. */
CSQ_API csq_status csq__begin_pruned(csq_decoder *d, const csq_tensor *tensor) {
    size_t sizes[2], begin, i;
    unsigned axis;
    d->kept = 1;
    for (axis = 0, begin = 1; axis < 2; axis++) {
        uint64_t size = csq__stream_size(tensor->shape[axis], 1), ones = 0;
        const uint8_t *octets = d->stored + begin;
        if (begin > d->length || size > d->length - begin) return CSQ_DAMAGED;
        sizes[axis] = (size_t)size;
        if (tensor->shape[axis] % 8 && octets[sizes[axis] - 1] >> tensor->shape[axis] % 8) return CSQ_DAMAGED;
        for (i = 0; i < sizes[axis]; i++) {
            unsigned octet = octets[i];
            for (; octet; octet &= octet - 1) ones++;
        }
        d->shape[axis] = tensor->shape[axis];
        d->kept *= ones;
        begin += sizes[axis];
    }
    d->rows = d->stored + 1;
    d->columns = d->rows + sizes[0];
    d->depth = d->elements / d->shape[0] / d->shape[1];
    d->kept *= d->depth;
    d->encoding = (csq_encoding)d->stored[0];
    d->stored += begin;
    d->length -= begin;
    if (d->kept == 0) return CSQ_DAMAGED;
    switch (d->encoding) {
    case CSQ_DENSE: return d->length == csq__stream_size(d->kept, d->bits) ? CSQ_OK : CSQ_DAMAGED;
    case CSQ_TERNARY: return d->bits <= 2 && d->length == (d->kept + 4) / 5 ? CSQ_OK : CSQ_DAMAGED;
    case CSQ_CODEBOOK:
    case CSQ_CONTEXT:
    case CSQ_RANS: return CSQ_OK;
    default: return CSQ_DAMAGED;
    }
}

/* Get ready to read a tensor from its first element. The tensor itself is not needed any more afterwards. */
CSQ_API csq_status csq_begin(csq_decoder *d, const csq_tensor *tensor) {
    unsigned used, bits;
    d->dtype = tensor->dtype;
    d->encoding = tensor->encoding;
    d->bits = tensor->bits;
    d->elements = tensor->elements;
    d->position = 0;
    d->stored = tensor->stored;
    d->length = tensor->length;
    d->rows = d->columns = NULL;
    d->kept = d->elements;
    d->taken = 0;
    d->status = CSQ_OK;
    if (d->encoding == CSQ_PRUNED) d->status = csq__begin_pruned(d, tensor);
    if (d->status != CSQ_OK) return d->status;
    if (d->encoding == CSQ_CODEBOOK) d->status = csq__begin_codebook(d);
    if (d->encoding == CSQ_RANS) d->status = csq__begin_rans(d);
    if (d->encoding == CSQ_CONTEXT) d->status = csq__begin_context(d, tensor);
    if (d->status != CSQ_OK || d->kept == 0) return d->status;
    bits = d->encoding == CSQ_DENSE ? d->bits : d->encoding == CSQ_CODEBOOK ? d->index_bits : 0;
    used = (unsigned)(d->kept * bits % 8);
    if (used && d->stored[d->length - 1] >> used) d->status = CSQ_DAMAGED;
    if (d->encoding == CSQ_TERNARY) {
        static const uint8_t limit[5] = {243, 3, 9, 27, 81};
        if (d->stored[d->length - 1] >= limit[d->kept % 5]) d->status = CSQ_DAMAGED;
    }
    return d->status;
}

/* Move to an element, at most to the end. Entropy-coded and pruned tensors are read in order from their beginning:
   for them CSQ_TYPE, unless the decoder is at the element already. */
CSQ_API csq_status csq_seek(csq_decoder *d, uint64_t element) {
    if (element == d->position) return d->status; /* of a pruned tensor, `taken` is not the position */
    if (d->encoding == CSQ_RANS || d->encoding == CSQ_CONTEXT || d->rows) return CSQ_TYPE;
    if (element > d->elements) return CSQ_END;
    d->position = d->taken = element;
    return d->status;
}

/* Decode eight values of up to eight bits each from a word, into eight bytes. */
CSQ_API void csq__spread(uint64_t word, unsigned bits, uint8_t *out) {
    uint64_t m1 = ((uint64_t)1 << bits) - 1, m2 = ((uint64_t)1 << 2 * bits) - 1, m4 = ((uint64_t)1 << 4 * bits) - 1;
    uint64_t x = (word & m4) | (word >> 4 * bits & m4) << 32;
    unsigned i;
    m2 *= UINT64_C(0x0000000100000001);
    x = (x & m2) | (x >> 2 * bits & m2) << 16;
    m1 *= UINT64_C(0x0001000100010001);
    x = (x & m1) | (x >> bits & m1) << 8;
    x |= (x >> (bits - 1) & UINT64_C(0x0101010101010101)) * (0xff << bits & 0xff); /* sign */
    for (i = 0; i < 8; i++) out[i] = (uint8_t)(x >> 8 * i);
}

/* Dense values of up to eight bits; `count` has been checked. */
CSQ_API void csq__dense_i8(csq_decoder *d, int8_t *out, size_t count) {
    unsigned bits = d->bits, sign = 1u << (bits - 1);
    while (count) {
        if (d->taken % 8 == 0 && count >= 8) {
            size_t byte = (size_t)(d->taken / 8 * bits);
            size_t groups = count / 8, readable = d->length - byte < 8 ? 0 : (d->length - byte - 8) / bits + 1;
            const uint8_t *p = d->stored + byte;
            if (groups > readable) groups = readable;
            if (groups) {
                size_t i;
                for (i = 0; i < groups; i++) csq__spread(csq__u64(p + i * bits), bits, (uint8_t *)out + 8 * i);
                out += 8 * groups;
                count -= 8 * groups;
                d->taken += 8 * groups;
                continue;
            }
        }
        *out++ = (int8_t)((int)(csq__field(d->stored, d->taken++, bits) ^ sign) - (int)sign);
        count--;
    }
}

CSQ_API void csq__rans(csq_decoder *d, int16_t *out, size_t count) {
    const uint8_t *word = d->stored + d->word, *end = d->stored + d->length;
    uint32_t lane = d->lane, lanes = d->lanes, i;
    int32_t lowest = d->lowest;
    size_t n = count;
    while (n) {
        uint32_t stop = n < lanes - lane ? lane + (uint32_t)n : lanes;
        n -= stop - lane;
        for (; lane < stop; lane++) {
            uint32_t x = d->state[lane], slot = x & (CSQ_SLOTS - 1), symbol = d->symbol_of[slot];
            x = d->frequency[symbol] * (x >> 12) + slot - d->first_slot[symbol];
            if (x < 65536) {
                if (word == end) { d->status = CSQ_DAMAGED; return; }
                x = x << 16 | csq__u16(word);
                word += 2;
            }
            d->state[lane] = x;
            *out++ = (int16_t)(lowest + (int32_t)symbol);
        }
        if (lane == lanes) lane = 0;
    }
    d->lane = lane;
    d->word = (size_t)(word - d->stored);
    d->taken += count;
    if (d->taken == d->kept) { /* it has to end where encoding began */
        if (word != end) d->status = CSQ_DAMAGED;
        for (i = 0; i < lanes; i++)
            if (d->state[i] != 65536) d->status = CSQ_DAMAGED;
    }
}

/* The next decision of the context coder, whose yes has the slots below `f`; no branch: it would be mispredicted. */
CSQ_API uint32_t csq__take(csq_decoder *d, uint32_t f) {
    uint32_t x = d->state[0], slot = x & (CSQ_SLOTS - 1), yes = slot < f, no = yes - 1; /* no is 0 or all ones */
    slot -= f & no;
    f = ((CSQ_SLOTS - 2 * f) & no) + f;
    x = f * (x >> 12) + slot;
    if (x < 65536) {
        if (d->word == d->length) d->status = CSQ_DAMAGED;
        else {
            x = x << 16 | csq__u16(d->stored + d->word);
            d->word += 2;
        }
    }
    d->state[0] = x;
    return yes;
}

/* The next decision in a context, which learns from it. */
CSQ_API uint32_t csq__ask(csq_decoder *d, uint32_t context) {
    uint32_t p = d->frequency[context], pace = d->first_slot[context], shift = pace & 15;
    uint32_t yes = csq__take(d, p >> 4), other = -yes & 65535;
    if (shift < 8) { /* seen once more: the shift is the logarithm of one more than that, at least 1 */
        pace += 16;
        pace += (pace + 16) >> (shift + 5);
        shift = pace & 15;
        d->first_slot[context] = (uint16_t)pace;
    }
    p ^= other; /* towards 65535 is towards 0 in the complement */
    d->frequency[context] = (uint16_t)((p - (p >> shift)) ^ other);
    return yes;
}

CSQ_API uint32_t csq__magnitude(int32_t v) { return (uint32_t)(v < 0 ? -v : v); }

/* Decode `count` elements of a context-coded stream. */
CSQ_API void csq__context(csq_decoder *d, int16_t *out, size_t count) {
    uint16_t *values = d->symbol_of; /* the last 256 */
    for (; count && d->status == CSQ_OK; count--) {
        uint32_t at = (uint32_t)d->taken, beside = d->column > 0, below = d->width <= 128 && d->place >= d->width;
        int32_t left = beside ? (int16_t)values[(at - 1) & 255] : 0;
        int32_t above = below ? (int16_t)values[(at - d->width) & 255] : 0;
        int32_t slope = 2 * (left + above);
        uint32_t a = csq__magnitude(left), b = csq__magnitude(above), value = 0, context, negative;
        context = (a + b < 3 ? a + b : 3) * 3 + beside + below;
        if (a < b) a = b;
        while (csq__ask(d, context) && ++value < 15) context = 22 + 14 * (a < 6 ? a : 6) + value;
        if (value == 15) {
            uint32_t length = 0, rest = 1;
            while (length < 8 && csq__ask(d, 121 + length)) length++;
            if (length == 8) d->status = CSQ_DAMAGED;
            for (; length; length--) rest = rest << 1 | csq__take(d, CSQ_SLOTS / 2);
            value = 14 + rest;
        }
        if (value) {
            if (beside && below) slope -= (int16_t)values[(at - d->width - 1) & 255];
            a = csq__magnitude(slope);
            a = a < 3 ? a : a < 5 ? 3 : a < 9 ? 4 : 5;
            negative = 1 - csq__ask(d, slope < 0 ? 17 - a : 17 + a);
            if ((value - negative) >> (d->bits - 1)) d->status = CSQ_DAMAGED;
            value = (value ^ -negative) + negative;
        }
        values[at & 255] = (uint16_t)value;
        *out++ = (int16_t)values[at & 255];
        d->taken++;
        if (++d->column == d->width) d->column = 0;
        if (++d->place == d->kernel) d->place = 0;
    }
    if (d->taken == d->kept && (d->state[0] != 65536 || d->word != d->length)) d->status = CSQ_DAMAGED;
}

/* Integers of any encoding but dense ones of up to eight bits; `count` has been checked. */
CSQ_API void csq__integers(csq_decoder *d, int16_t *out, size_t count) {
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    const uint8_t *p = d->stored;
    size_t i;
    if (d->encoding == CSQ_RANS) { csq__rans(d, out, count); return; }
    if (d->encoding == CSQ_CONTEXT) { csq__context(d, out, count); return; }
    for (i = 0; i < count; i++, d->taken++) {
        uint32_t value;
        size_t at = (size_t)d->taken; /* of a raw element: the file holds them all */
        switch (d->encoding) {
        case CSQ_TERNARY:
            value = p[d->taken / 5];
            if (value > 242) d->status = CSQ_DAMAGED;
            out[i] = (int16_t)((int)(value / powers[d->taken % 5] % 3) - 1);
            if (d->bits == 1 && out[i] > 0) d->status = CSQ_DAMAGED;
            break;
        case CSQ_CODEBOOK:
            value = d->index_bits ? csq__field(p + 1 + 2 * d->levels, d->taken, d->index_bits) : 0;
            if (value >= d->levels) { d->status = CSQ_DAMAGED; value = 0; }
            out[i] = (int16_t)csq__i16(p + 1 + 2 * value);
            break;
        case CSQ_DENSE:
            value = csq__field(p, d->taken, d->bits);
            out[i] = (int16_t)((int32_t)(value ^ 1u << (d->bits - 1)) - ((int32_t)1 << (d->bits - 1)));
            break;
        default:
            if (d->dtype == CSQ_I16) out[i] = (int16_t)csq__i16(p + 2 * at);
            else if (d->dtype == CSQ_I8) out[i] = (int16_t)((p[at] ^ 0x80) - 0x80);
            else {
                if (d->dtype == CSQ_BOOL && p[at] > 1) d->status = CSQ_DAMAGED;
                out[i] = p[at];
            }
        }
    }
}

/* Integers of any tensor, `count` of which have been checked; those that are not stored are 0. */
CSQ_API void csq__next(csq_decoder *d, int16_t *out, size_t count) {
    uint64_t position = d->position;
    d->position += count;
    if (!d->rows) {
        csq__integers(d, out, count);
        return;
    }
    while (count && d->status == CSQ_OK) {
        uint64_t pair = position / d->depth, row = pair / d->shape[1], column = pair % d->shape[1];
        uint64_t left = d->depth - position % d->depth;
        size_t n = count < left ? count : (size_t)left;
        if (d->rows[row / 8] >> row % 8 & d->columns[column / 8] >> column % 8 & 1) csq__integers(d, out, n);
        else memset(out, 0, n * sizeof *out);
        out += n;
        count -= n;
        position += n;
    }
}

/* Whether `count` further elements of one of `allowed` dtypes (a bit each) can be read. */
CSQ_API csq_status csq__ready(const csq_decoder *d, uint64_t count, unsigned allowed) {
    if (d->status != CSQ_OK) return d->status;
    if (!(allowed >> d->dtype & 1)) return CSQ_TYPE;
    return count > d->elements - d->position ? CSQ_END : CSQ_OK;
}

/* Read the next `count` elements of a BOOL, U8, I8 or I16 tensor. */
CSQ_API csq_status csq_read_i16(csq_decoder *d, int16_t *out, size_t count) {
    int8_t block[256];
    csq_status status = csq__ready(d, count, 1u << CSQ_BOOL | 1u << CSQ_U8 | 1u << CSQ_I8 | 1u << CSQ_I16);
    if (status != CSQ_OK) return status;
    if (d->encoding != CSQ_DENSE || d->bits > 8 || d->rows) {
        csq__next(d, out, count);
        return d->status;
    }
    d->position += count;
    while (count) {
        size_t n = count < sizeof block ? count : sizeof block, i;
        csq__dense_i8(d, block, n);
        for (i = 0; i < n; i++) *out++ = block[i];
        count -= n;
    }
    return CSQ_OK;
}

/* Read the next `count` elements of a BOOL or I8 tensor, or of an I16 one stored in up to eight bits. */
CSQ_API csq_status csq_read_i8(csq_decoder *d, int8_t *out, size_t count) {
    int16_t block[256];
    csq_status status = csq__ready(d, count, 1u << CSQ_BOOL | 1u << CSQ_I8 | 1u << CSQ_I16);
    if (status != CSQ_OK) return status;
    if (d->dtype == CSQ_I16 && d->bits > 8) return CSQ_TYPE;
    if (d->encoding == CSQ_DENSE && !d->rows) {
        csq__dense_i8(d, out, count);
        d->position += count;
        return CSQ_OK;
    }
    while (count && d->status == CSQ_OK) {
        size_t n = count < 256 ? count : 256, i;
        memset(block, 0, sizeof block);
        csq__next(d, block, n);
        for (i = 0; i < n; i++) *out++ = (int8_t)block[i];
        count -= n;
    }
    return d->status;
}

CSQ_API float csq__float(uint32_t pattern) {
    float value;
    memcpy(&value, &pattern, sizeof value);
    return value;
}

CSQ_API float csq__from_half(uint32_t half) {
    uint32_t sign = (half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3ff;
    if (exponent == 31) return csq__float(sign | 0x7f800000 | mantissa << 13);
    if (exponent) return csq__float(sign | (exponent + 112) << 23 | mantissa << 13);
    /* subnormal: mantissa / 2^24, exact in float32 */
    return sign ? -(float)mantissa / 16777216.0f : (float)mantissa / 16777216.0f;
}

/* Read the next `count` elements, each times `scale` (the tensor NAME_scale of a quantized tensor NAME, or 1).
   Any dtype but U64, I64, F64 and C64; a 32-bit integer is rounded to float. */
CSQ_API csq_status csq_read_float(csq_decoder *d, float scale, float *out, size_t count) {
    int16_t block[256];
    csq_status status = csq__ready(d, count, ~(1u << CSQ_U64 | 1u << CSQ_I64 | 1u << CSQ_F64 | 1u << CSQ_C64));
    if (status != CSQ_OK) return status;
    while (count) {
        size_t n = count < 256 ? count : 256, at = (size_t)d->position, i;
        if (d->encoding == CSQ_HALF || d->dtype > CSQ_I16 || d->dtype == CSQ_U16) {
            for (i = 0; i < n; i++) {
                const uint8_t *p = d->stored + (at + i) * (d->bits / 8);
                uint32_t v = d->bits == 16 ? csq__u16(p) : csq__u32(p);
                float value;
                if (d->encoding == CSQ_HALF || d->dtype == CSQ_F16) value = csq__from_half(v);
                else if (d->dtype == CSQ_F32) value = csq__float(v);
                else if (d->dtype == CSQ_I32) value = v >> 31 ? -(float)(~v + 1u) : (float)v;
                else value = (float)v;
                out[i] = scale == 1.0f ? value : value * scale;
            }
            d->position = d->taken += n;
        } else {
            memset(block, 0, sizeof block);
            status = csq_read_i16(d, block, n);
            if (status != CSQ_OK) return status;
            for (i = 0; i < n; i++) out[i] = (float)block[i] * scale;
        }
        out += n;
        count -= n;
    }
    return d->status;
}

/* --- inference files --------------------------------------------------------------------------------- */

/* Scales and biases of one layer of an inference file, whose BatchNorm is folded into them. Layers come in the order of
   the table:

       csq_channels channels;
       status = csq_channels_begin(&channels, &file);
       for each tensor of integers, from csq_first on: status = csq_channels_next(&channels, &tensor);

   Then channel i of the layer's output is csq_scale(&channels, i) · (sum of integers · inputs) + bias, where inputs are
   float; with quantized inputs the integer bias is added to the sum of integers · integers. */
typedef struct {
    const uint8_t *next, *end;      /* the records that follow */
    unsigned scale_kind, bias_kind; /* 0: one scale for all channels; 0: no bias */
    uint32_t count;                 /* channels */
    int exponent;                   /* lowest one of the codes */
    const uint8_t *scales, *biases;
} csq_channels;

/* Whether the layer has a bias for each channel, and whether these are integers, in steps of input times scale. */
CSQ_API int csq_has_bias(const csq_channels *c) { return c->bias_kind != 0; }
CSQ_API int csq_has_integer_bias(const csq_channels *c) { return c->bias_kind > 2; }

CSQ_API float csq_scale(const csq_channels *c, uint32_t channel) {
    unsigned bits = c->scale_kind - 16;
    uint32_t code, whole;
    int exponent;
    if (c->scale_kind < 16) return csq__float(csq__u32(c->scales + (c->scale_kind ? 4 * (size_t)channel : 0)));
    code = csq__u16(c->scales + 2 * (size_t)channel);
    whole = (code & ((1u << (16 - bits)) - 1)) | 1u << (16 - bits);
    exponent = c->exponent + (int)(code >> (16 - bits)) + 150; /* as float32 has it, once whole has 24 bits */
    for (; whole < 1u << 23; exponent--) {
        if (exponent <= 1) return csq__float(whole); /* subnormal */
        whole <<= 1;
    }
    return csq__float((uint32_t)exponent << 23 | (whole & 0x7fffff));
}

CSQ_API int32_t csq_bias_i32(const csq_channels *c, uint32_t channel) {
    uint32_t v;
    if (c->bias_kind == 4) return csq__i16(c->biases + 2 * (size_t)channel);
    v = csq__u32(c->biases + 4 * (size_t)channel);
    return v >> 31 ? -(int32_t)(~v) - 1 : (int32_t)v;
}

CSQ_API float csq_bias_float(const csq_channels *c, uint32_t channel) {
    if (c->bias_kind == 2) return csq__from_half(csq__u16(c->biases + 2 * (size_t)channel));
    return csq__float(csq__u32(c->biases + 4 * (size_t)channel));
}

/* Find the scales and biases; CSQ_NOT_FOUND in an archival file. */
CSQ_API csq_status csq_channels_begin(csq_channels *c, const csq_file *file) {
    csq_tensor tensor;
    csq_status status = csq_find(file, &tensor, ":channels");
    memset(c, 0, sizeof *c);
    if (status == CSQ_OK) status = csq_check(&tensor);
    if (status != CSQ_OK) return status;
    if (tensor.dtype != CSQ_U16 || tensor.rank != 1) return CSQ_TYPE;
    c->next = tensor.stored;
    c->end = tensor.stored + tensor.length;
    return CSQ_OK;
}

/* Read those of the next layer; after the last one, next must equal end. */
CSQ_API csq_status csq_channels_next(csq_channels *c, const csq_tensor *layer) {
    static const uint8_t widths[] = {0, 4, 2, 4, 2};
    uint64_t count = layer->rank ? layer->shape[0] : 1, size;
    size_t left = (size_t)(c->end - c->next);
    uint32_t i;
    if (layer->encoding == CSQ_RAW || layer->encoding == CSQ_HALF) return CSQ_TYPE;
    if (left < 2) return CSQ_DAMAGED;
    c->scale_kind = c->next[0];
    c->bias_kind = c->next[1];
    if ((c->scale_kind > 1 && c->scale_kind < 16) || c->scale_kind > 21 || c->bias_kind > 4) return CSQ_DAMAGED;
    size = c->scale_kind == 0 ? 4 : c->scale_kind == 1 ? 4 * count : 2 * count + 2;
    if (size + widths[c->bias_kind] * count > left - 2) return CSQ_DAMAGED;
    c->count = (uint32_t)count;
    c->scales = c->next + 2;
    c->biases = c->scales + (size_t)size;
    c->next = c->biases + widths[c->bias_kind] * (size_t)count;
    if (c->scale_kind >= 16) {
        c->exponent = csq__i16(c->scales);
        c->scales += 2;
        if (c->exponent < -149) return CSQ_DAMAGED;
    }
    for (i = 0; i < (c->scale_kind ? c->count : 1); i++) {
        if (c->scale_kind >= 16) {
            unsigned mantissa = 32 - c->scale_kind; /* bits of it in a code */
            int high = (int)(csq__u16(c->scales + 2 * (size_t)i) >> mantissa);
            if (c->exponent + high + (int)mantissa > 127) return CSQ_DAMAGED; /* beyond float32 */
        } else if (csq__u32(c->scales + 4 * (size_t)i) - 1 >= 0x7f7fffff)
            return CSQ_DAMAGED; /* not above zero, or not finite */
    }
    for (i = 0; c->bias_kind && c->bias_kind < 3 && i < c->count; i++) {
        float bias = csq_bias_float(c, i);
        if (!(bias - bias == 0.0f)) return CSQ_DAMAGED; /* not finite */
    }
    return CSQ_OK;
}

/* Set *crc to the CRC-32 of a tensor's decoded elements, little-endian; its stored bytes are checked, too. */
CSQ_API csq_status csq_checksum(const csq_tensor *tensor, csq_decoder *d, uint32_t *crc) {
    union { int16_t integers[128]; float floats[128]; } block;
    uint8_t bytes[512];
    unsigned size = csq_item_size(tensor->dtype);
    csq_status status = csq_check(tensor);
    *crc = 0;
    if (status == CSQ_OK) status = csq_begin(d, tensor);
    if (status == CSQ_OK && tensor->encoding == CSQ_RAW && tensor->dtype != CSQ_BOOL) {
        *crc = tensor->crc32;
        return CSQ_OK;
    }
    while (status == CSQ_OK && d->position < d->elements) {
        size_t n = d->elements - d->position < 128 ? (size_t)(d->elements - d->position) : 128, i;
        unsigned b;
        memset(&block, 0, sizeof block);
        if (tensor->dtype == CSQ_F32) status = csq_read_float(d, 1.0f, block.floats, n);
        else status = csq_read_i16(d, block.integers, n);
        for (i = 0; i < n; i++) {
            uint32_t v;
            if (tensor->dtype == CSQ_F32) memcpy(&v, &block.floats[i], sizeof v);
            else v = (uint32_t)(int32_t)block.integers[i];
            for (b = 0; b < size; b++) bytes[i * size + b] = (uint8_t)(v >> 8 * b);
        }
        if (status == CSQ_OK) *crc = csq_crc32(*crc, bytes, n * size);
    }
    return status;
}

/* Words for a status. */
CSQ_API const char *csq_message(csq_status status) {
    static const char *const messages[] = {
        "ok", "end", "no such tensor", "not a csq file", "unknown csq version", "truncated", "damaged",
        "not readable as this type"};
    return (unsigned)status <= CSQ_TYPE ? messages[status] : "unknown status";
}

#endif
