// out[t, n] = sum_k x[t, k] * w[n, k], f32 activations and weights of any kind, many tokens
//
// Tiles of 64 tokens x 64 rows, 16 features at a time through workgroup memory; 8 x 4 outputs an
// invocation.
// Shapes: x [T, K] padded to a multiple of 64 with zeros, w [N, K], out slice of [T, N].
// Dispatch: (ceil(N / 64), ceil(T / 64), 1); one a shard.
// Parts: step, weights_{f32,f16,q8,ternary,ternary_block}.
// Twin: src/cpu/dense_linear.rs, src/cpu/ternary_linear.rs (ternary_linear_f32).
struct Params {
    rows: u32, // of this shard
    k: u32,
    block: u32,
    x_stride: u32,
    out_stride: u32,
    out_at: u32,
    by_outputs: u32, // rows of x are outputs, not tokens
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

// Four features a vector; [feature / 4][token or row].
var<workgroup> tile_x: array<vec4<f32>, 256>;
var<workgroup> tile_w: array<vec4<f32>, 256>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let count = select(step.tokens, step.out_rows, p.by_outputs == 1u);
    let t0 = wg.y * 64u;
    let n0 = wg.x * 64u;
    let quads = (p.k + 3u) / 4u;
    let tm = tid / 16u;
    let tn = tid % 16u;
    var acc: array<vec4<f32>, 8>;
    for (var i = 0u; i < 8u; i++) { acc[i] = vec4<f32>(0.0); }
    for (var q0 = 0u; q0 < quads; q0 += 4u) {
        for (var j = 0u; j < 2u; j++) {
            let i = tid + j * 128u;
            let line = i / 4u;
            let quad = q0 + i % 4u;
            var a = vec4<f32>(0.0);
            var b = vec4<f32>(0.0);
            if (t0 + line < count && quad < quads) {
                a = x[(t0 + line) * (p.x_stride / 4u) + quad];
            }
            if (n0 + line < p.rows && quad < quads) { b = weights4(n0 + line, quad); }
            tile_x[i % 4u * 64u + line] = a;
            tile_w[i % 4u * 64u + line] = b;
        }
        workgroupBarrier();
        for (var q = 0u; q < 4u; q++) {
            let b0 = tile_w[q * 64u + tn];
            let b1 = tile_w[q * 64u + tn + 16u];
            let b2 = tile_w[q * 64u + tn + 32u];
            let b3 = tile_w[q * 64u + tn + 48u];
            for (var i = 0u; i < 8u; i++) {
                let a = tile_x[q * 64u + tm + 8u * i];
                acc[i] += vec4<f32>(dot(a, b0), dot(a, b1), dot(a, b2), dot(a, b3));
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 8u; i++) {
        let t = t0 + tm + 8u * i;
        for (var r = 0u; r < 4u; r++) {
            let n = n0 + tn + 16u * r;
            if (t < count && n < p.rows) {
                out[t * p.out_stride + p.out_at + n] = acc[i][r] * row_factor(n);
            }
        }
    }
}
