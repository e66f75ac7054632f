// Feature `d` of the head that starts at `head`, turned by its position on the way (see rope.wgsl).
override PAIRS: u32 = 64u;
override INTERLEAVED: u32 = 0u;
@group(0) @binding(6) var<storage, read> table: array<vec2<f32>>;
fn turned(head: u32, d: u32, pos: u32) -> f32 {
    if (d >= 2u * PAIRS) { return rotary(head + d); }
    if (INTERLEAVED == 1u) {
        let turn = table[pos * PAIRS + d / 2u];
        let other = rotary(head + (d ^ 1u));
        let own = rotary(head + d);
        return select(other * turn.y + own * turn.x, own * turn.x - other * turn.y, d % 2u == 0u);
    }
    let turn = table[pos * PAIRS + d % PAIRS];
    let own = rotary(head + d);
    if (d < PAIRS) { return own * turn.x - rotary(head + d + PAIRS) * turn.y; }
    return rotary(head + d - PAIRS) * turn.y + own * turn.x;
}
