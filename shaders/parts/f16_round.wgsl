// x >= 0 rounded to the nearest f16 (ties to even), as f32: bit arithmetic, because the rounding of
// pack2x16float is left to the device.
fn f16_round(x: f32) -> f32 {
    if (x < 6.103515625e-05) {
        return round(x * 16777216.0) / 16777216.0;
    }
    let bits = bitcast<u32>(x);
    return bitcast<f32>((bits + 0xfffu + ((bits >> 13u) & 1u)) & 0xffffe000u);
}
