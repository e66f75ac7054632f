// One f16 scale a block of 64 << BLOCK_SHIFT weights.
override BLOCK_SHIFT: u32 = 0u;
@group(0) @binding(7) var<storage, read> block_scales: array<u32>;
fn block_scale(row: u32, b: u32) -> f32 {
    let per_row = (p.k + (64u << BLOCK_SHIFT) - 1u) >> (6u + BLOCK_SHIFT);
    let i = row * per_row + (b >> BLOCK_SHIFT);
    return unpack2x16float(block_scales[i >> 1u])[i & 1u];
}
