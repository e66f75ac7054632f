// Reductions by shuffles. Same signatures as reduce_workgroup. RUN (4 to 32) is at most the
// device's smallest subgroup, so that every run of RUN invocations lies inside one.
override WG: u32 = 256u;
override RUN: u32 = 8u;
// Loops are of fixed length, so that browsers add no counters of 64 bits that end them, and compilers unroll them.
// Enough for 1024 invocations: naga 30 cannot specialise array lengths that are expressions.
var<workgroup> reduce_f: array<f32, 128>;
var<workgroup> reduce_i: array<i32, 128>;
var<workgroup> reduce_two: array<vec2<f32>, 128>;

// Sum over each run of `lanes` (a power of two, at most RUN) invocations.
fn lanes_sum_f32(v: f32, tid: u32, lanes: u32) -> f32 {
    var sum = v;
    for (var i = 0u; i < 5u; i++) {
        if (1u << i < lanes) { sum += subgroupShuffleXor(sum, 1u << i); }
    }
    return sum;
}

// The same where `lanes` may be more than RUN: then the runs are joined in workgroup memory.
fn lanes_sum_i32(v: i32, tid: u32, lanes: u32) -> i32 {
    var sum = v;
    for (var i = 0u; i < 5u; i++) {
        if (1u << i < min(lanes, RUN)) { sum += subgroupShuffleXor(sum, 1u << i); }
    }
    if (lanes <= RUN) { return sum; }
    if (tid % RUN == 0u) { reduce_i[tid / RUN] = sum; }
    workgroupBarrier();
    let first = (tid - tid % lanes) / RUN;
    sum = 0;
    for (var i = 0u; i < lanes / RUN; i++) { sum += reduce_i[first + i]; }
    workgroupBarrier();
    return sum;
}

// Sum over the workgroup; every invocation gets it.
fn workgroup_sum_f32(v: f32, tid: u32) -> f32 {
    let run = lanes_sum_f32(v, tid, RUN);
    if (tid % RUN == 0u) { reduce_f[tid / RUN] = run; }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < WG / RUN; i++) { sum += reduce_f[i]; }
    workgroupBarrier();
    return sum;
}

fn workgroup_sum_i32(v: i32, tid: u32) -> i32 {
    let run = lanes_sum_i32(v, tid, RUN);
    if (tid % RUN == 0u) { reduce_i[tid / RUN] = run; }
    workgroupBarrier();
    var sum = 0;
    for (var i = 0u; i < WG / RUN; i++) { sum += reduce_i[i]; }
    workgroupBarrier();
    return sum;
}

fn workgroup_max_f32(v: f32, tid: u32) -> f32 {
    var run = v;
    for (var i = 0u; i < 5u; i++) {
        if (1u << i < RUN) { run = max(run, subgroupShuffleXor(run, 1u << i)); }
    }
    if (tid % RUN == 0u) { reduce_f[tid / RUN] = run; }
    workgroupBarrier();
    var largest = reduce_f[0];
    for (var i = 1u; i < WG / RUN; i++) { largest = max(largest, reduce_f[i]); }
    workgroupBarrier();
    return largest;
}

// Sum of the first and largest of the second over the workgroup. Free of a barrier at the end: call
// it once.
fn workgroup_sum_max_f32(sum: f32, largest: f32, tid: u32) -> vec2<f32> {
    var both = vec2<f32>(sum, largest);
    for (var i = 0u; i < 5u; i++) {
        if (1u << i < RUN) {
            let other = subgroupShuffleXor(both, 1u << i);
            both = vec2<f32>(both.x + other.x, max(both.y, other.y));
        }
    }
    if (tid % RUN == 0u) { reduce_two[tid / RUN] = both; }
    workgroupBarrier();
    both = reduce_two[0];
    for (var i = 1u; i < WG / RUN; i++) {
        let other = reduce_two[i];
        both = vec2<f32>(both.x + other.x, max(both.y, other.y));
    }
    return both;
}
