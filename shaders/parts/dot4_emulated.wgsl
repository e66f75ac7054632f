// Sum of the products of four signed bytes, where the language has no such function.
fn bytes4(a: u32) -> vec4<i32> {
    let v = bitcast<vec4<i32>>(vec4<u32>(a << 24u, a << 16u, a << 8u, a));
    return v >> vec4<u32>(24u);
}

fn dot4(a: u32, b: u32) -> i32 {
    let p = bytes4(a) * bytes4(b);
    return p.x + p.y + p.z + p.w;
}
