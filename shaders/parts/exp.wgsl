// e^x to about one unit in the last place, for x <= 88: the built-in exp may be off by 3 + 2|x| of
// them, which int8 rounding further on makes visible. Range reduction and polynomial of Cephes expf.
fn exp_f32(x: f32) -> f32 {
    let y = max(x, -87.0);
    let n = round(y * 1.44269504088896341);
    let r = (y - n * 0.693359375) + n * 2.12194440e-4;
    var q = 1.9875691500e-4;
    q = q * r + 1.3981999507e-3;
    q = q * r + 8.3334519073e-3;
    q = q * r + 4.1665795894e-2;
    q = q * r + 1.6666665459e-1;
    q = q * r + 5.0000001201e-1;
    let e = (q * r * r + r) + 1.0;
    return select(0.0, e * bitcast<f32>((i32(n) + 127) << 23u), x > -87.0);
}

fn exp4_f32(x: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(exp_f32(x.x), exp_f32(x.y), exp_f32(x.z), exp_f32(x.w));
}

fn sigmoid_f32(x: f32) -> f32 {
    return 1.0 / (1.0 + exp_f32(min(-x, 80.0)));
}
