/* Windows of floats [channels][height][width]: the largest, what is outside left out, or the mean of `divisor` values;
   0 divides by how many are inside. */
static void pool_floats(const pool_t *p, const uint8_t *x, uint8_t *y, int32_t is_mean, int32_t divisor) {
    int32_t oy, ox, ky, kx, c, at = 0;
    for (c = 0; c < p->channels; c++, x += 4 * p->in_h * p->in_w)
        for (oy = 0; oy < p->out_h; oy++)
            for (ox = 0; ox < p->out_w; ox++) {
                float found = 0.0f;
                int32_t inside = 0;
                for (ky = 0; ky < p->kernel_h; ky++)
                    for (kx = 0; kx < p->kernel_w; kx++) {
                        const int32_t at_y = oy * p->stride_h - p->pad_h + ky * p->dilation_h;
                        const int32_t at_x = ox * p->stride_w - p->pad_w + kx * p->dilation_w;
                        float value;
                        if (at_y < 0 || at_y >= p->in_h || at_x < 0 || at_x >= p->in_w) continue;
                        value = load(x, at_y * p->in_w + at_x);
                        if (is_mean) found = found + value;
                        else if (inside == 0 || value > found) found = value;
                        inside++;
                    }
                if (is_mean) found = found / (float)(divisor ? divisor : inside ? inside : 1);
                save(y, at++, found);
            }
}
