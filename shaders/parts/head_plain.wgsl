// Queries and keys are turned as they are.
fn heads_begin(query_from: u32, key_from: u32, tid: u32) {}
// Four features of the query's head (`which` 0) or the key's (1), which starts at vector `head`.
fn head4(head: u32, quad: u32, which: u32) -> vec4<f32> { return q[head + quad]; }
