/* y[batch][i][j] = sum of a[batch][i][k] * b[batch][k][j], k from 0 on; b_next is 0 if all batches have one b. */
static void matrices(const uint8_t *a, const uint8_t *b, uint8_t *y, int32_t batches, int32_t rows, int32_t inner,
                     int32_t columns, int32_t b_next) {
    int32_t batch, i, j, k, at = 0;
    for (batch = 0; batch < batches; batch++, b += 4 * b_next)
        for (i = 0; i < rows; i++, a += 4 * inner)
            for (j = 0; j < columns; j++) {
                float sum = 0.0f;
                for (k = 0; k < inner; k++) sum = sum + load(a, k) * load(b, k * columns + j);
                save(y, at++, sum);
            }
}
