// Queries and keys are normalised head by head before they are turned.
@group(0) @binding(7) var<storage, read> query_norm: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read> key_norm: array<vec4<f32>>;
var<workgroup> head_squares: array<f32, 128>; // 2 * QUADS (lower.rs)
var<private> head_inverse: vec2<f32>;
fn heads_begin(query_from: u32, key_from: u32, tid: u32) {
    for (var r = 0u; r < (2u * QUADS + WG - 1u) / WG; r++) {
        let i = r * WG + tid;
        let v = q[select(key_from, query_from, i < QUADS) + i % QUADS];
        if (i < 2u * QUADS) { head_squares[i] = dot(v, v); }
    }
    workgroupBarrier();
    var squares = vec2<f32>(0.0);
    for (var i = 0u; i < QUADS; i++) {
        squares += vec2<f32>(head_squares[i], head_squares[QUADS + i]);
    }
    head_inverse = 1.0 / sqrt(squares / f32(QUADS * 4u) + p.eps);
}
// Four features of the query's head (`which` 0) or the key's (1), which starts at vector `head`.
fn head4(head: u32, quad: u32, which: u32) -> vec4<f32> {
    let weight = select(query_norm[quad], key_norm[quad], which == 1u);
    return q[head + quad] * select(head_inverse.x, head_inverse.y, which == 1u) * weight;
}
