// cache[pos + t] = k[t], v[t]
//
// Shapes: k, v slices of [T, G * D]; cache [context, G * D] twice. An invocation takes four values.
// Dispatch: (ceil(G * D / 4 / 64), T, 1). Parts: step, f16_round, kv_*. Twin: src/cpu/kv_append.rs.
struct Params {
    kv_quads: u32, // G * D / 4
    k_stride: u32,
    k_at: u32,
    v_stride: u32,
    v_at: u32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;

fn new_key4(t: u32, quad: u32) -> vec4<f32> {
    let i = t * p.k_stride + p.k_at + quad * 4u;
    return vec4<f32>(k[i], k[i + 1u], k[i + 2u], k[i + 3u]);
}
fn new_value4(t: u32, quad: u32) -> vec4<f32> {
    let i = t * p.v_stride + p.v_at + quad * 4u;
    return vec4<f32>(v[i], v[i + 1u], v[i + 2u], v[i + 3u]);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let quad = id.x;
    let t = id.y;
    if (quad >= p.kv_quads) { return; }
    var key_peak = vec4<f32>(0.0);
    var value_peak = vec4<f32>(0.0);
    if (PEAKS) {
        let first = quad / 8u * 8u;
        for (var i = first; i < min(first + 8u, p.kv_quads); i++) {
            key_peak = max(key_peak, abs(new_key4(t, i)));
            value_peak = max(value_peak, abs(new_value4(t, i)));
        }
    }
    let key_max = max(max(key_peak.x, key_peak.y), max(key_peak.z, key_peak.w));
    let value_max = max(max(value_peak.x, value_peak.y), max(value_peak.z, value_peak.w));
    put_key4(step.pos + t, quad, new_key4(t, quad), key_max);
    put_value4(step.pos + t, quad, new_value4(t, quad), value_max);
}
