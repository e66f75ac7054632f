// Queries and the new key are turned by their position on the way (see rope.wgsl), and the new key
// and value go into the cache: the first head of a group writes them, every head takes them from its
// own memory, rounded as the cache would, because no workgroup sees what another has just written.
// Parts: head_*.
override PAIRS: u32 = 64u;
override INTERLEAVED: u32 = 0u;
@group(0) @binding(6) var<storage, read> table: array<vec4<f32>>; // cos, sin, cos, sin
var<workgroup> query: array<vec4<f32>, QUADS>;
var<workgroup> fresh_key: array<vec4<f32>, QUADS>;
var<workgroup> fresh_value: array<vec4<f32>, QUADS>;

// Four features of a head (see head4), turned. Without branches, so that all loads are under way
// together.
fn turned4(head: u32, quad: u32, which: u32, pos: u32) -> vec4<f32> {
    let d = quad * 4u;
    let own = head4(head, quad, which);
    if (INTERLEAVED == 1u) {
        let turn = table[(pos * PAIRS + min(d / 2u, PAIRS - 2u)) / 2u];
        let both = vec4<f32>(own.x * turn.x - own.y * turn.y, own.x * turn.y + own.y * turn.x,
            own.z * turn.z - own.w * turn.w, own.z * turn.w + own.w * turn.z);
        return select(own, both, d < 2u * PAIRS);
    }
    let is_first = d < PAIRS;
    let far = select(quad - PAIRS / 4u, quad + PAIRS / 4u, is_first);
    let other = head4(head, min(far, QUADS - 1u), which);
    let at = (pos * PAIRS + d % PAIRS) / 2u;
    let a = table[at];
    let b = table[at + 1u];
    let cosines = vec4<f32>(a.x, a.z, b.x, b.z);
    let sines = vec4<f32>(a.y, a.w, b.y, b.w);
    let both = own * cosines + select(other, -other, is_first) * sines;
    return select(own, both, d < 2u * PAIRS);
}
fn largest4(v: vec4<f32>) -> f32 {
    let a = abs(v);
    return max(max(a.x, a.y), max(a.z, a.w));
}

fn attention_begin(t: u32, head: u32, pos: u32, is_last_split: bool, tid: u32) {
    let row = t * p.q_stride / 4u;
    let origin = head / p.group * QUADS;
    let query_from = row + p.q_at / 4u + head * QUADS;
    let key_from = row + p.k_at / 4u + origin;
    heads_begin(query_from, key_from, tid);
    for (var r = 0u; r < (3u * QUADS + WG - 1u) / WG; r++) {
        let i = r * WG + tid;
        let quad = i % QUADS;
        if (i < QUADS) {
            query[quad] = p.scale * turned4(query_from, quad, 0u, pos);
        } else if (i < 2u * QUADS) {
            fresh_key[quad] = turned4(key_from, quad, 1u, pos);
        } else if (i < 3u * QUADS) {
            fresh_value[quad] = q[row + p.v_at / 4u + origin + quad];
        }
    }
    workgroupBarrier();
    // WG >= QUADS: one quad an invocation.
    var key = vec4<f32>(0.0);
    var value = vec4<f32>(0.0);
    var key_peak = 0.0;
    var value_peak = 0.0;
    if (tid < QUADS) {
        key = fresh_key[tid];
        value = fresh_value[tid];
        if (PEAKS) {
            let first = tid / 8u * 8u;
            for (var j = 0u; j < 8u; j++) {
                let i = min(first + j, QUADS - 1u);
                key_peak = max(key_peak, largest4(fresh_key[i]));
                value_peak = max(value_peak, largest4(fresh_value[i]));
            }
        }
    }
    if (PEAKS) { workgroupBarrier(); }
    if (tid < QUADS) {
        fresh_key[tid] = stored4(key, key_peak);
        fresh_value[tid] = stored4(value, value_peak);
        if (head % p.group == 0u && is_last_split) {
            put_key4(pos, origin + tid, key, key_peak);
            put_value4(pos, origin + tid, value, value_peak);
        }
    }
    workgroupBarrier();
}

// The position to read the cache at: not the new one, but its neighbour, which is dropped.
fn cached(position: u32, pos: u32) -> u32 { return select(position, position ^ 1u, position == pos); }
// Key and value of a position, given what the cache holds there.
fn seen_key4(read: vec4<f32>, position: u32, pos: u32, quad: u32) -> vec4<f32> {
    return select(read, fresh_key[quad], position == pos);
}
fn seen_value4(read: vec4<f32>, position: u32, pos: u32, quad: u32) -> vec4<f32> {
    return select(read, fresh_value[quad], position == pos);
}
