// Reductions through workgroup memory. Same signatures as reduce_subgroup. Call them in uniform
// control flow only: they hold barriers.
override WG: u32 = 256u;
var<workgroup> reduce_f: array<f32, WG>;
var<workgroup> reduce_i: array<i32, WG>;
var<workgroup> reduce_two: array<vec2<f32>, WG>;

// Sum over each run of `lanes` (a power of two) consecutive invocations.
fn lanes_sum_f32(v: f32, tid: u32, lanes: u32) -> f32 {
    if (lanes == 1u) { return v; }
    reduce_f[tid] = v;
    workgroupBarrier();
    let base = tid - tid % lanes;
    var sum = 0.0;
    for (var i = 0u; i < lanes; i++) { sum += reduce_f[base + i]; }
    workgroupBarrier();
    return sum;
}

fn lanes_sum_i32(v: i32, tid: u32, lanes: u32) -> i32 {
    if (lanes == 1u) { return v; }
    reduce_i[tid] = v;
    workgroupBarrier();
    let base = tid - tid % lanes;
    var sum = 0;
    for (var i = 0u; i < lanes; i++) { sum += reduce_i[base + i]; }
    workgroupBarrier();
    return sum;
}

// Sum over the workgroup; every invocation gets it.
fn workgroup_sum_f32(v: f32, tid: u32) -> f32 {
    reduce_f[tid] = v;
    workgroupBarrier();
    for (var s = WG / 2u; s > 0u; s >>= 1u) {
        if (tid < s) { reduce_f[tid] += reduce_f[tid + s]; }
        workgroupBarrier();
    }
    let sum = reduce_f[0];
    workgroupBarrier();
    return sum;
}

fn workgroup_sum_i32(v: i32, tid: u32) -> i32 {
    reduce_i[tid] = v;
    workgroupBarrier();
    for (var s = WG / 2u; s > 0u; s >>= 1u) {
        if (tid < s) { reduce_i[tid] += reduce_i[tid + s]; }
        workgroupBarrier();
    }
    let sum = reduce_i[0];
    workgroupBarrier();
    return sum;
}

fn workgroup_max_f32(v: f32, tid: u32) -> f32 {
    reduce_f[tid] = v;
    workgroupBarrier();
    for (var s = WG / 2u; s > 0u; s >>= 1u) {
        if (tid < s) { reduce_f[tid] = max(reduce_f[tid], reduce_f[tid + s]); }
        workgroupBarrier();
    }
    let largest = reduce_f[0];
    workgroupBarrier();
    return largest;
}

// Sum of the first and largest of the second over the workgroup. Free of a barrier at the end: call
// it once.
fn workgroup_sum_max_f32(sum: f32, largest: f32, tid: u32) -> vec2<f32> {
    reduce_two[tid] = vec2<f32>(sum, largest);
    workgroupBarrier();
    for (var s = WG / 2u; s > 0u; s >>= 1u) {
        if (tid < s) {
            let a = reduce_two[tid];
            let b = reduce_two[tid + s];
            reduce_two[tid] = vec2<f32>(a.x + b.x, max(a.y, b.y));
        }
        workgroupBarrier();
    }
    return reduce_two[0];
}
