// The best of the shares that argmax left.
@group(0) @binding(2) var<storage, read> best: array<vec2<u32>>;

fn pick(position: u32, tid: u32) -> u32 {
    var value = -3.4028234e38;
    var id = NONE;
    for (var i = tid; i < p.shares; i += WG) {
        let v = bitcast<f32>(best[i].x);
        if (best[i].y != NONE && (v > value || (v == value && best[i].y < id))) {
            value = v;
            id = best[i].y;
        }
    }
    return winner(value, id, tid);
}
