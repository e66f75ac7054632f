// Queries as they are; the cache holds every position.
var<workgroup> query: array<vec4<f32>, QUADS>;
fn attention_begin(t: u32, head: u32, pos: u32, is_last_split: bool, tid: u32) {
    if (tid < QUADS) { // WG >= QUADS
        query[tid] = p.scale * q[(t * p.q_stride + p.q_at) / 4u + head * QUADS + tid];
    }
    workgroupBarrier();
}
// The position to read the cache at.
fn cached(position: u32, pos: u32) -> u32 { return position; }
// Key and value of a position, given what the cache holds there.
fn seen_key4(read: vec4<f32>, position: u32, pos: u32, quad: u32) -> vec4<f32> { return read; }
fn seen_value4(read: vec4<f32>, position: u32, pos: u32, quad: u32) -> vec4<f32> { return read; }
