// KV cache of int8 with one scale a 32 values (the rule of ActQuant::Block32). A position is
// kv_quads words of four int8, then the scales, rounded to f16 but kept as f32 bits.
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> values: array<u32>;
fn row_words() -> u32 { return p.kv_quads + (p.kv_quads + 7u) / 8u; }
fn floats4(w: u32) -> vec4<f32> {
    let v = bitcast<vec4<i32>>(vec4<u32>(w << 24u, w << 16u, w << 8u, w));
    return vec4<f32>(v >> vec4<u32>(24u));
}
fn bytes4(v: vec4<f32>) -> u32 {
    let q = vec4<i32>(clamp(round(v), vec4<f32>(-128.0), vec4<f32>(127.0)));
    let b = bitcast<vec4<u32>>(q) & vec4<u32>(0xffu);
    return b.x | (b.y << 8u) | (b.z << 16u) | (b.w << 24u);
}
fn peak4(v: vec4<f32>) -> f32 {
    let a = abs(v);
    return max(max(a.x, a.y), max(a.z, a.w));
}
fn key4(pos: u32, quad: u32) -> vec4<f32> {
    let row = pos * row_words();
    return floats4(keys[row + quad]) * bitcast<f32>(keys[row + p.kv_quads + quad / 8u]);
}
fn value4(pos: u32, quad: u32) -> vec4<f32> {
    let row = pos * row_words();
    return floats4(values[row + quad]) * bitcast<f32>(values[row + p.kv_quads + quad / 8u]);
}
fn inverse(largest: f32) -> f32 {
    if (largest > 0.0) { return 127.0 / largest; }
    return 0.0;
}
// Run of up to 32 values of the new key and value.
fn put_run(pos: u32, run: u32, t: u32) {
    let end = min(run * 8u + 8u, p.kv_quads);
    var largest_key = 0.0;
    var largest_value = 0.0;
    for (var quad = run * 8u; quad < end; quad++) {
        largest_key = max(largest_key, peak4(new_key4(t, quad)));
        largest_value = max(largest_value, peak4(new_value4(t, quad)));
    }
    let key_factor = inverse(largest_key);
    let value_factor = inverse(largest_value);
    let row = pos * row_words();
    for (var quad = run * 8u; quad < end; quad++) {
        keys[row + quad] = bytes4(new_key4(t, quad) * key_factor);
        values[row + quad] = bytes4(new_value4(t, quad) * value_factor);
    }
    keys[row + p.kv_quads + run] = bitcast<u32>(f16_round(largest_key / 127.0));
    values[row + p.kv_quads + run] = bitcast<u32>(f16_round(largest_value / 127.0));
}
