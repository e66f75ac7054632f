// cache[pos + t] = k[t], v[t]; with turn_rope, k is turned on the way
//
// Shapes: k, v slices of [T, G * D]; cache [context, G * D] twice. An invocation takes 32 values.
// Dispatch: (ceil(G * D / 32 / 64), T, 1). Parts: step, f16_round, kv_*, turn_*. Twin: src/cpu/kv_append.rs.
struct Params {
    kv_quads: u32, // G * D / 4
    k_stride: u32,
    k_at: u32,
    v_stride: u32,
    v_at: u32,
    head_dim: u32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;

fn rotary(i: u32) -> f32 { return k[i]; }
fn new_key4(t: u32, quad: u32) -> vec4<f32> {
    let head = t * p.k_stride + p.k_at + quad * 4u / p.head_dim * p.head_dim;
    let d = quad * 4u % p.head_dim;
    let pos = step.pos + t;
    return vec4<f32>(turned(head, d, pos), turned(head, d + 1u, pos), turned(head, d + 2u, pos),
        turned(head, d + 3u, pos));
}
fn new_value4(t: u32, quad: u32) -> vec4<f32> {
    let i = t * p.v_stride + p.v_at + quad * 4u;
    return vec4<f32>(v[i], v[i + 1u], v[i + 2u], v[i + 3u]);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < (p.kv_quads + 7u) / 8u) {
        put_run(step.pos + id.y, id.x, id.y);
    }
}
