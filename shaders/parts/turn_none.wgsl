// Feature `d` of the head that starts at `head`: nothing is left to turn.
fn turned(head: u32, d: u32, pos: u32) -> f32 { return rotary(head + d); }
