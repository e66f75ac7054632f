// Turns pairs of each head by the token's position: (u, v) -> (u cos - v sin, u sin + v cos)
//
// Shapes: x slice of [T, heads * D], in place; table [context, pairs] of (cos, sin).
// Dispatch: (ceil(heads * pairs / 64), T, 1). Parts: step. Twin: src/cpu/rope.rs.
struct Params {
    head_dim: u32,
    pairs: u32,
    total: u32, // pairs of all heads
    interleaved: u32,
    x_stride: u32,
    x_at: u32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> table: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < p.total) {
        let i = id.x % p.pairs;
        let head = id.y * p.x_stride + p.x_at + id.x / p.pairs * p.head_dim;
        let turn = table[(step.pos + id.y) * p.pairs + i];
        let split = p.interleaved == 0u;
        let a = head + select(2u * i, i, split);
        let b = head + select(2u * i + 1u, i + p.pairs, split);
        let u = x[a];
        let v = x[b];
        x[a] = u * turn.x - v * turn.y;
        x[b] = u * turn.y + v * turn.x;
    }
}
