// The value of larger magnitude, the first of equals.
fn larger(a: f32, b: f32) -> f32 { return select(a, b, abs(b) > abs(a)); }
fn peak4(v: vec4<f32>) -> f32 { return larger(larger(larger(v.x, v.y), v.z), v.w); }
