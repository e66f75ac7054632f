// Penalties, temperature, top-k, top-p, min-p and the Gumbel-max draw of src/sampling.rs.
//
// One workgroup passes over the logits several times. What is kept is a cut in the order (larger
// logits first, smaller ids first on a tie): everything up to (cut_key, cut_id). Cuts are found by
// radix selection, eight bits a pass: by count for top-k, by probability mass (64-bit fixed point,
// unit 2^-40) for top-p.
@group(0) @binding(2) var<storage, read> logits: array<f32>;
@group(0) @binding(5) var<storage, read_write> scores: array<f32>; // [V], scratch
@group(0) @binding(6) var<storage, read_write> counts: array<atomic<u32>>; // [V], zero between draws

var<workgroup> tally: array<atomic<u32>, 256>; // count, or low word of the mass
var<workgroup> tally_high: array<atomic<u32>, 256>;
// Digit, what is left to take inside its bucket (low, high), the bucket (low, high).
var<workgroup> found: array<u32, 5>;
var<workgroup> everyones_largest: f32;

// Order-preserving image of a float.
fn order_key(v: f32) -> u32 {
    let bits = bitcast<u32>(v);
    return select(bits ^ 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

fn from_key(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key ^ 0x80000000u, (key & 0x80000000u) != 0u));
}

// exp(score - largest) in units of 2^-40, low and high word.
fn mass(score: f32, largest: f32) -> vec2<u32> {
    let scaled = exp(score - largest) * 256.0;
    let high = floor(scaled);
    return vec2<u32>(u32((scaled - high) * 4294967040.0), u32(high));
}

fn wide_add(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn wide_sub(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}

fn wide_less(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x < b.x);
}

fn wide_float(a: vec2<u32>) -> f32 {
    return f32(a.y) * 4294967296.0 + f32(a.x);
}

fn wide_of(v: f32) -> vec2<u32> {
    let high = floor(v / 4294967296.0);
    return vec2<u32>(u32(min(v - high * 4294967296.0, 4294967040.0)), u32(high));
}

fn tally_add(digit: u32, amount: vec2<u32>) {
    let old = atomicAdd(&tally[digit], amount.x);
    let carry = select(0u, 1u, old + amount.x < old);
    if (amount.y + carry > 0u) { atomicAdd(&tally_high[digit], amount.y + carry); }
}

fn tally_clear(tid: u32) {
    for (var i = tid; i < 256u; i += WG) {
        atomicStore(&tally[i], 0u);
        atomicStore(&tally_high[i], 0u);
    }
    workgroupBarrier();
}

// Finds the digit, from the top or from the bottom, at which the running sum reaches `take`.
// Everyone gets what `found` says.
fn tally_find(take: vec2<u32>, descending: bool, tid: u32) -> array<u32, 5> {
    workgroupBarrier();
    if (tid == 0u) {
        var sum = vec2<u32>(0u);
        // The last non-empty bucket, should rounding keep the sum below `take`.
        var answer = array<u32, 5>(0u, 0u, 0u, 0u, 0u);
        var done = false;
        for (var i = 0u; i < 256u && !done; i++) {
            let digit = select(i, 255u - i, descending);
            let bucket = vec2<u32>(atomicLoad(&tally[digit]), atomicLoad(&tally_high[digit]));
            if (bucket.x > 0u || bucket.y > 0u) {
                let next = wide_add(sum, bucket);
                done = !wide_less(next, take);
                var left = bucket;
                if (done) { left = wide_sub(take, sum); }
                answer = array<u32, 5>(digit, left.x, left.y, bucket.x, bucket.y);
                sum = next;
            }
        }
        found = answer;
    }
    return workgroupUniformLoad(&found);
}

fn kept(key: u32, id: u32, cut: vec2<u32>) -> bool {
    return key > cut.x || (key == cut.x && id <= cut.y);
}

// The id of the `take`-th token with this key.
fn cut_id(key: u32, take: u32, tid: u32) -> u32 {
    var left = vec2<u32>(take, 0u);
    var prefix = 0u;
    for (var round = 0u; round < 4u; round++) {
        let shift = 24u - 8u * round;
        tally_clear(tid);
        for (var i = tid; i < p.vocab; i += WG) {
            let above = select(i >> (shift + 8u), 0u, round == 0u);
            if (order_key(scores[i]) == key && above == prefix) {
                atomicAdd(&tally[(i >> shift) & 255u], 1u);
            }
        }
        let hit = tally_find(left, false, tid);
        prefix = (prefix << 8u) | hit[0];
        left = vec2<u32>(hit[1], 0u);
    }
    return prefix;
}

// The cut after the `take` largest (by_mass: after the largest whose mass reaches `take`) of those
// kept by `cut`.
fn select_cut(cut: vec2<u32>, by_mass: bool, take: vec2<u32>, largest: f32, tid: u32) -> vec2<u32> {
    var left = take;
    var prefix = 0u;
    var bucket = vec2<u32>(0u);
    for (var round = 0u; round < 4u; round++) {
        let shift = 24u - 8u * round;
        tally_clear(tid);
        for (var i = tid; i < p.vocab; i += WG) {
            let key = order_key(scores[i]);
            let above = select(key >> (shift + 8u), 0u, round == 0u);
            if (above == prefix && kept(key, i, cut)) {
                let digit = (key >> shift) & 255u;
                if (by_mass) {
                    tally_add(digit, mass(scores[i], largest));
                } else {
                    atomicAdd(&tally[digit], 1u);
                }
            }
        }
        let hit = tally_find(left, true, tid);
        prefix = (prefix << 8u) | hit[0];
        left = vec2<u32>(hit[1], hit[2]);
        bucket = vec2<u32>(hit[3], hit[4]);
    }
    var number = left.x;
    var size = bucket.x;
    if (by_mass) {
        // All tokens with this key weigh the same.
        let each = max(wide_float(mass(from_key(prefix), largest)), 1.0);
        number = u32(max(ceil(wide_float(left) / each), 1.0));
        size = u32(ceil(wide_float(bucket) / each));
    }
    // The search by id is for cuts inside a tie.
    if (number >= size) { return vec2<u32>(prefix, NONE); }
    return vec2<u32>(prefix, cut_id(prefix, number, tid));
}

fn total_mass(cut: vec2<u32>, largest: f32, tid: u32) -> vec2<u32> {
    tally_clear(tid);
    for (var i = tid; i < p.vocab; i += WG) {
        if (kept(order_key(scores[i]), i, cut)) { tally_add(tid % 256u, mass(scores[i], largest)); }
    }
    workgroupBarrier();
    if (tid == 0u) {
        var sum = vec2<u32>(0u);
        for (var i = 0u; i < 256u; i++) {
            sum = wide_add(sum, vec2<u32>(atomicLoad(&tally[i]), atomicLoad(&tally_high[i])));
        }
        found[0] = sum.x;
        found[1] = sum.y;
    }
    let answer = workgroupUniformLoad(&found);
    return vec2<u32>(answer[0], answer[1]);
}

fn rotated(v: u32, by: u32) -> u32 {
    return (v << by) | (v >> (32u - by));
}

// Threefry-2x32, 20 rounds; the first word (src/sampling.rs).
fn threefry(key: vec2<u32>, counter: vec2<u32>) -> u32 {
    var rotations = array<u32, 8>(13u, 15u, 26u, 6u, 17u, 29u, 16u, 24u);
    var ks = array<u32, 3>(key.x, key.y, 0x1BD11BDAu ^ key.x ^ key.y);
    var x = counter + key;
    for (var round = 0u; round < 20u; round++) {
        x.x += x.y;
        x.y = rotated(x.y, rotations[round % 8u]) ^ x.x;
        if (round % 4u == 3u) {
            let i = round / 4u + 1u;
            x.x += ks[i % 3u];
            x.y += ks[(i + 1u) % 3u] + i;
        }
    }
    return x.x;
}

fn gumbel(position: u32, id: u32) -> f32 {
    let bits = threefry(vec2<u32>(p.seed_low, p.seed_high), vec2<u32>(position, id));
    let u = (f32(bits >> 9u) + 0.5) * (1.0 / 8388608.0);
    return -log(-log(u));
}

fn pick(position: u32, tid: u32) -> u32 {
    let row = (state[3] - 1u) * p.stride;
    let penalties = p.window > 0u;
    let first = position - min(position, p.window);
    if (penalties) {
        for (var i = first + tid; i < position; i += WG) {
            if (tokens[i] < p.vocab) { atomicAdd(&counts[tokens[i]], 1u); }
        }
        storageBarrier();
    }
    var largest = LOWEST;
    for (var i = tid; i < p.vocab; i += WG) {
        var v = logits[row + i];
        if (penalties) {
            let seen = atomicLoad(&counts[i]);
            if (seen > 0u) {
                v = select(v * p.repetition, v / p.repetition, v > 0.0);
                v -= p.frequency * f32(seen) + p.presence;
            }
        }
        if (p.temperature > 0.0) { v /= p.temperature; }
        if (!(v >= LOWEST)) { v = LOWEST; }
        scores[i] = v;
        largest = max(largest, v);
    }
    largest = workgroup_max_f32(largest, tid);
    // The same for everyone, which compilers that check barriers only believe of this.
    if (tid == 0u) { everyones_largest = largest; }
    largest = workgroupUniformLoad(&everyones_largest);
    if (penalties) {
        storageBarrier();
        for (var i = first + tid; i < position; i += WG) {
            if (tokens[i] < p.vocab) { atomicStore(&counts[tokens[i]], 0u); }
        }
    }
    var cut = vec2<u32>(0u, NONE);
    if (p.temperature > 0.0) {
        if (p.top_k > 0u && p.top_k < p.vocab) {
            cut = select_cut(cut, false, vec2<u32>(p.top_k, 0u), largest, tid);
        }
        if (p.top_p < 1.0) {
            let enough = wide_of(wide_float(total_mass(cut, largest, tid)) * p.top_p);
            cut = select_cut(cut, true, enough, largest, tid);
        }
    }
    var value = LOWEST;
    var id = NONE;
    for (var i = tid; i < p.vocab; i += WG) {
        let score = scores[i];
        var v = score;
        if (p.temperature > 0.0) {
            let likely = score == largest || exp(score - largest) >= p.min_p;
            if (!likely || !kept(order_key(score), i, cut)) { continue; }
            // Noise is at most 16.64: what cannot win needs none.
            if (score + 16.7 < value) { continue; }
            v += gumbel(position, i);
        }
        if (v > value || id == NONE) {
            value = v;
            id = i;
        }
    }
    return winner(value, id, tid);
}
