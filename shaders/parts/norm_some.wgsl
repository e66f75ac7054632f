// What is quantised on the spot is rms_norm(x).
@group(0) @binding(5) var<storage, read> norm_weight: array<vec4<f32>>;
const NORMED = true;
fn norm_weight4(quad: u32) -> vec4<f32> { return norm_weight[quad]; }
fn norm_inverse(squares: f32) -> f32 { return 1.0 / sqrt(squares / f32(p.k) + p.eps); }
