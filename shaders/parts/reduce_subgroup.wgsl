// Reductions by shuffles. Same signatures as reduce_workgroup. Runs of 8 invocations lie inside a
// subgroup on every device that gets this part (Caps: smallest subgroup >= 8), so nothing here
// depends on the subgroup's size.
override WG: u32 = 256u;
// Enough for 1024 invocations: naga 30 cannot specialise array lengths that are expressions.
var<workgroup> reduce_f: array<f32, 128>;
var<workgroup> reduce_i: array<i32, 128>;

// Sum over each run of `lanes` (a power of two, at most the smallest subgroup) invocations.
fn lanes_sum_f32(v: f32, tid: u32, lanes: u32) -> f32 {
    var sum = v;
    for (var m = lanes >> 1u; m > 0u; m >>= 1u) { sum += subgroupShuffleXor(sum, m); }
    return sum;
}

fn lanes_sum_i32(v: i32, tid: u32, lanes: u32) -> i32 {
    var sum = v;
    for (var m = lanes >> 1u; m > 0u; m >>= 1u) { sum += subgroupShuffleXor(sum, m); }
    return sum;
}

// Sum over the workgroup; every invocation gets it.
fn workgroup_sum_f32(v: f32, tid: u32) -> f32 {
    let run = lanes_sum_f32(v, tid, 8u);
    if (tid % 8u == 0u) { reduce_f[tid / 8u] = run; }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < WG / 8u; i++) { sum += reduce_f[i]; }
    workgroupBarrier();
    return sum;
}

fn workgroup_sum_i32(v: i32, tid: u32) -> i32 {
    let run = lanes_sum_i32(v, tid, 8u);
    if (tid % 8u == 0u) { reduce_i[tid / 8u] = run; }
    workgroupBarrier();
    var sum = 0;
    for (var i = 0u; i < WG / 8u; i++) { sum += reduce_i[i]; }
    workgroupBarrier();
    return sum;
}

fn workgroup_max_f32(v: f32, tid: u32) -> f32 {
    var run = v;
    for (var m = 4u; m > 0u; m >>= 1u) { run = max(run, subgroupShuffleXor(run, m)); }
    if (tid % 8u == 0u) { reduce_f[tid / 8u] = run; }
    workgroupBarrier();
    var largest = reduce_f[0];
    for (var i = 1u; i < WG / 8u; i++) { largest = max(largest, reduce_f[i]); }
    workgroupBarrier();
    return largest;
}
