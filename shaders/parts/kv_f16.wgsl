// KV cache of f16, packed in pairs; four neighbouring values of a position at a time.
@group(0) @binding(4) var<storage, read_write> keys: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> values: array<vec2<u32>>;
fn unpack4(v: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y));
}
fn pack4(v: vec4<f32>) -> vec2<u32> {
    return vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw));
}
fn key4(pos: u32, quad: u32) -> vec4<f32> { return unpack4(keys[pos * p.kv_quads + quad]); }
fn value4(pos: u32, quad: u32) -> vec4<f32> { return unpack4(values[pos * p.kv_quads + quad]); }
// Run of up to 32 values of the new key and value.
fn put_run(pos: u32, run: u32, t: u32) {
    for (var quad = run * 8u; quad < min(run * 8u + 8u, p.kv_quads); quad++) {
        keys[pos * p.kv_quads + quad] = pack4(new_key4(t, quad));
        values[pos * p.kv_quads + quad] = pack4(new_value4(t, quad));
    }
}
