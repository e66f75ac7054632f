// out = act(gate) * up, act 0: relu(x)^2 (in f32: it overflows f16), 1: x * sigmoid(x)
//
// Shapes: gate, up, out slices of [T, dim].
// Dispatch: (ceil(dim / 256), T, 1). Parts: step, exp. Twin: src/cpu/gated_act.rs.
struct Params {
    dim: u32,
    act: u32,
    gate_stride: u32,
    gate_at: u32,
    up_stride: u32,
    up_at: u32,
    out_stride: u32,
    out_at: u32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> gate: array<f32>;
@group(0) @binding(3) var<storage, read> up: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < p.dim) {
        let g = gate[id.y * p.gate_stride + p.gate_at + id.x];
        var act = max(g, 0.0) * max(g, 0.0);
        if (p.act == 1u) { act = g * sigmoid_f32(g); }
        out[id.y * p.out_stride + p.out_at + id.x] = act * up[id.y * p.up_stride + p.up_at + id.x];
    }
}
