// KV cache of f16, packed in pairs; four neighbouring values of a position at a time.
@group(0) @binding(4) var<storage, read_write> keys: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> values: array<vec2<u32>>;
const PEAKS = false; // nothing depends on the largest of 32 values
fn unpack4(v: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y));
}
fn pack4(v: vec4<f32>) -> vec2<u32> {
    return vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw));
}
fn key4(pos: u32, quad: u32) -> vec4<f32> { return unpack4(keys[pos * p.kv_quads + quad]); }
fn value4(pos: u32, quad: u32) -> vec4<f32> { return unpack4(values[pos * p.kv_quads + quad]); }
// What a later read gives back.
fn stored4(v: vec4<f32>, peak: f32) -> vec4<f32> { return unpack4(pack4(v)); }
fn put_key4(pos: u32, quad: u32, v: vec4<f32>, peak: f32) {
    keys[pos * p.kv_quads + quad] = pack4(v);
}
fn put_value4(pos: u32, quad: u32, v: vec4<f32>, peak: f32) {
    values[pos * p.kv_quads + quad] = pack4(v);
}
