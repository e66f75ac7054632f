// out[t, k] = table[id[t], k]
//
// Shapes: tokens [context + 1] (ids by position), table [V, K], out [T, K].
// Dispatch: (ceil(K / 256), T, 1); one dispatch a shard of the table, which leaves other shards' rows alone.
// Parts: step, rows_{f32,f16,q8,ternary,ternary_block}. Twin: src/cpu/embed.rs.
struct Params {
    dim: u32,
    out_stride: u32,
    row_first: u32,
    rows: u32,
    block: u32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> tokens: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let k = id.x;
    let t = id.y;
    // Wraps round for ids below this shard, and is then past its end as well.
    let row = tokens[step.pos + t] - p.row_first;
    if (row < p.rows && k < p.dim) { out[t * p.out_stride + k] = row_value(row, k); }
}
