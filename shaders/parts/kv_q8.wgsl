// KV cache of int8 with one scale a 32 values (the rule of ActQuant::Block32). A position is
// kv_quads words of four int8, then the scales, rounded to f16 but kept as f32 bits.
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> values: array<u32>;
const PEAKS = true; // the scale is the largest of 32 values
fn row_words() -> u32 { return p.kv_quads + (p.kv_quads + 7u) / 8u; }
fn floats4(w: u32) -> vec4<f32> {
    let v = bitcast<vec4<i32>>(vec4<u32>(w << 24u, w << 16u, w << 8u, w));
    return vec4<f32>(v >> vec4<u32>(24u));
}
fn key4(pos: u32, quad: u32) -> vec4<f32> {
    let row = pos * row_words();
    return floats4(keys[row + quad]) * bitcast<f32>(keys[row + p.kv_quads + quad / 8u]);
}
fn value4(pos: u32, quad: u32) -> vec4<f32> {
    let row = pos * row_words();
    return floats4(values[row + quad]) * bitcast<f32>(values[row + p.kv_quads + quad / 8u]);
}
fn inverse(peak: f32) -> f32 {
    if (peak > 0.0) { return 127.0 / peak; }
    return 0.0;
}
fn step_of(peak: f32) -> f32 { return f16_round(peak / 127.0); }
// What a later read gives back; `peak` is the largest magnitude of the run of 32 that `v` is part of.
fn stored4(v: vec4<f32>, peak: f32) -> vec4<f32> {
    return floats4(packed_i8(rounded_i8(v * inverse(peak)))) * step_of(peak);
}
fn put_key4(pos: u32, quad: u32, v: vec4<f32>, peak: f32) {
    let row = pos * row_words();
    keys[row + quad] = packed_i8(rounded_i8(v * inverse(peak)));
    if (quad % 8u == 0u) { keys[row + p.kv_quads + quad / 8u] = bitcast<u32>(step_of(peak)); }
}
fn put_value4(pos: u32, quad: u32, v: vec4<f32>, peak: f32) {
    let row = pos * row_words();
    values[row + quad] = packed_i8(rounded_i8(v * inverse(peak)));
    if (quad % 8u == 0u) { values[row + p.kv_quads + quad / 8u] = bitcast<u32>(step_of(peak)); }
}
