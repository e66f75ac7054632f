// KV cache of f32; four neighbouring values of a position at a time.
@group(0) @binding(4) var<storage, read_write> keys: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> values: array<vec4<f32>>;
fn key4(pos: u32, quad: u32) -> vec4<f32> { return keys[pos * p.kv_quads + quad]; }
fn value4(pos: u32, quad: u32) -> vec4<f32> { return values[pos * p.kv_quads + quad]; }
// Run of up to 32 values of the new key and value.
fn put_run(pos: u32, run: u32, t: u32) {
    for (var quad = run * 8u; quad < min(run * 8u + 8u, p.kv_quads); quad++) {
        keys[pos * p.kv_quads + quad] = new_key4(t, quad);
        values[pos * p.kv_quads + quad] = new_value4(t, quad);
    }
}
