/* Rows of a layer's integers, times `step`. Numbers of rows that do not exist stand for the nearest one. */
static void embed(const layer_t *l, const uint8_t *x, uint8_t *y, uint8_t *room, int32_t count, float step) {
    int8_t *const row = (int8_t *)room;
    int32_t i, k, number;
#ifdef MODEL_TRACE
    for (i = 0; i < l->out_c; i++) {
        decode(l, i, row, l->padded);
        TRACE_FILTER(l, i, row);
    }
#endif
    for (i = 0; i < count; i++, y += 4 * l->group_c) {
        memcpy(&number, x + 4 * i, sizeof number);
        if (number < 0) number = 0;
        if (number >= l->out_c) number = l->out_c - 1;
        decode(l, number, row, l->padded);
        for (k = 0; k < l->group_c; k++) {
            const int32_t q = l->wide ? (int32_t)row[k] + 2 * (int32_t)row[l->padded + k] : (int32_t)row[k];
            save(y, k, (float)q * step);
        }
    }
}
