// Four values as signed bytes of a word.
fn rounded_i8(v: vec4<f32>) -> vec4<i32> {
    return vec4<i32>(clamp(round(v), vec4<f32>(-128.0), vec4<f32>(127.0)));
}
fn packed_i8(q: vec4<i32>) -> u32 {
    let b = bitcast<vec4<u32>>(q) & vec4<u32>(0xffu);
    return b.x | (b.y << 8u) | (b.z << 16u) | (b.w << 24u);
}
