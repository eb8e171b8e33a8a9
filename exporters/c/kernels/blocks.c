/* Where position `at` is in the input, whose values are `spread` apart; -1 where there is no value. */
static int32_t place(int32_t at, int32_t spread, int32_t size) {
    if (at < 0) return -1;
    if (spread == 1) return at < size ? at : -1; /* no division */
    return at % spread == 0 && at / spread < size ? at / spread : -1;
}

/* Decodes up to `block` filters of one group from number c on; returns how many. Rows end in zeros. */
static int32_t decode_block(const layer_t *l, int32_t c, int8_t *w) {
    const int32_t rows = l->wide ? 2 : 1, end = (c / l->filters_a_group + 1) * l->filters_a_group;
    const int32_t count = end - c < l->block ? end - c : l->block;
    int32_t i;
    memset(w, 0, (size_t)(count * rows * l->padded));
    for (i = 0; i < count; i++, w += rows * l->padded) {
        decode(l, c + i, w, l->padded);
        TRACE_FILTER(l, c + i, w);
    }
    return count;
}
