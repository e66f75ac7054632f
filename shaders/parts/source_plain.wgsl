// The values to be quantised are x itself.
fn source_begin(t: u32, tid: u32) {}
fn source(t: u32, k: u32) -> f32 {
    return x[t * p.x_stride + p.x_at + k];
}
