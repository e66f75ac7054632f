//! Every kernel variant on a GPU against its plain twin.
//!
//! Needs an adapter: `BITNET_ADAPTER=llvmpipe` (with `VK_ICD_FILENAMES` pointing at lavapipe) or a
//! real one. `REQUIRE_GPU=1` turns a missing adapter into a failure; otherwise it is a visible skip.
//! `KERNEL` restricts the cases to one stem.
#![cfg(all(feature = "gpu", not(target_arch = "wasm32")))]

use bitnet_rust::backend::*;
use bitnet_rust::cpu::Cpu;
use bitnet_rust::cpu::cross_entropy::cross_entropy;
use bitnet_rust::gpu::harness::Harness;
use bitnet_rust::gpu::{Gpu, Options, kernels};
use bitnet_rust::plan::*;
use bitnet_rust::sampling::{Sampling, threefry2x32};
use bitnet_rust::selfcheck;
use bitnet_rust::synthetic;
use pollster::block_on;
use std::collections::BTreeSet;

fn open(options: Options) -> Option<Gpu> {
    match block_on(Gpu::new(Options { guards: true, ..options })) {
        Ok(gpu) => Some(gpu),
        Err(e) if std::env::var("REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("{e}"),
        Err(e) => {
            eprintln!("SKIPPED: {e}");
            None
        }
    }
}

/// Runs every case of the self-check; says which variants were compiled for it.
fn check(options: Options) -> BTreeSet<String> {
    let Some(mut gpu) = open(options) else { return BTreeSet::new() };
    let only = std::env::var("KERNEL").ok();
    let mut failures = Vec::new();
    let mut ran = 0;
    for case in selfcheck::cases() {
        if only.as_ref().is_some_and(|o| o != case.kernel) {
            continue;
        }
        ran += 1;
        let outcome = block_on(case.run(&mut gpu))
            .and_then(|()| block_on(gpu.check_guards()).map_err(|e| e.to_string()));
        if let Err(e) = outcome {
            failures.push(format!("{} {}: {e}", case.kernel, case.variant));
        }
    }
    eprintln!("{ran} cases on {}", gpu.caps().adapter);
    assert!(failures.is_empty(), "{} of {ran} failed:\n{}", failures.len(), failures.join("\n"));
    gpu.kernels_used()
}

#[test]
fn kernels_agree_with_their_twins() {
    let mut used = BTreeSet::new();
    for (subgroups, dot4) in [(true, true), (true, false), (false, true), (false, false)] {
        // The variants that run everywhere, within the limits that hold everywhere.
        let minimum = !subgroups && !dot4;
        let features = Some(KernelFeatures { subgroups, dot4, matrices: false });
        used.extend(check(Options { features, minimum, ..Options::default() }));
    }
    // Where there are cooperative matrices, what they replace was tested above.
    if open(Options::default()).is_some_and(|gpu| gpu.available_features().matrices) {
        used.extend(check(Options::default()));
    }
    if used.is_empty() || std::env::var_os("KERNEL").is_some() {
        return;
    }
    let has_subgroups = used.iter().any(|name| name.contains("subgroup"));
    let has_matrices = used.iter().any(|name| name.contains("matrix"));
    let untested: Vec<_> = kernels::variants()
        .iter()
        .map(|v| v.name())
        .filter(|name| has_subgroups || !name.contains("subgroup"))
        .filter(|name| has_matrices || !name.contains("matrix"))
        .filter(|name| !used.contains(name))
        // Covered by `attention_split_over_the_context`.
        .filter(|name| name != "attention_combine")
        .collect();
    assert!(untested.is_empty(), "no case runs {untested:#?}");
}

/// The choice is one that the device has, and leaves it as it was.
#[test]
fn features_are_chosen_by_measuring() {
    let Some(mut gpu) = open(Options::default()) else { return };
    let tuning = block_on(gpu.measure_features()).unwrap();
    let best = tuning.best;
    eprintln!("{}: {best} of {}", gpu.identity(), gpu.available_features());
    for trial in &tuning.trials {
        eprintln!("{trial:?}");
        assert!(trial.nmse <= 1e-3, "{trial:?}");
    }
    assert_eq!(best.and(gpu.available_features()), best);
    assert_eq!(gpu.features(), best);
    assert_eq!(best.to_string().parse(), Ok(best));
    assert_eq!(gpu.allocated_bytes(), 0);
    let case = &selfcheck::quick()[3];
    block_on(case.run(&mut gpu)).unwrap();

    gpu.destroy();
    let lost = block_on(gpu.measure_features());
    assert!(matches!(lost, Err(BackendError::DeviceLost { .. })), "{lost:?}");
    assert_eq!(gpu.features(), best, "as it was");
}

/// Attention over what an embedding of random rows left in the cache; the logits are its output.
fn attention_plan() -> Plan {
    let (heads, kv_heads, head_dim, vocab) = (4, 2, 32, 128);
    let buffer = |name, dim, rows| BufSpec { name, dim, kind: BufKind::F32, rows };
    let slice = |at, dim| Slice { buf: BufId(0), at, dim };
    let (q, k, v) = (slice(0, 128), slice(128, 64), slice(192, 64));
    let out = Slice { buf: BufId(1), at: 0, dim: 128 };
    let ops = vec![
        Op::Embed { table: WeightId(0), out: q.buf },
        Op::Rope { x: q, head_dim },
        Op::Rope { x: k, head_dim },
        Op::KvAppend { k, v, layer: 0 },
        Op::Attention { q, layer: 0, heads, scale: 0.6, out },
        Op::TakeOutputs { x: BufId(1), out: BufId(2) },
    ];
    Plan {
        buffers: vec![
            buffer("qkv", 256, Rows::Tokens),
            buffer("attn", 128, Rows::Tokens),
            buffer("logits", vocab, Rows::Outputs),
        ],
        weights: vec![WeightSpec {
            name: "qkv".into(),
            kind: WeightKind::Matrix { n: vocab, k: 256, dtype: MatrixType::F32 },
        }],
        labels: ops.iter().map(|op| op.stem().to_string()).collect(),
        ops,
        rope: RopeSpec {
            layout: RopeLayout::HalfSplit,
            inv_freq: (0..16).map(|i| 0.6f32.powi(i)).collect(),
            mscale: 1.0,
        },
        kv: KvSpec { layers: 1, kv_heads, head_dim },
        vocab,
        logits: BufId(2),
    }
}

fn load(backend: &mut impl Backend, plan: &Plan, options: RunOptions) {
    block_on(backend.allocate(&plan.weights)).unwrap();
    for (i, spec) in plan.weights.iter().enumerate() {
        let len = spec.kind.part_bytes(WeightPart::Data) as u32 / 4;
        let values: Vec<f32> = (0..len)
            .map(|j| threefry2x32([i as u32, 9], [j, 0])[0] as f32 / u32::MAX as f32 * 2.0 - 1.0)
            .collect();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        // In two pieces, as a stream would bring it.
        let half = (bytes.len() / 2) & !3;
        let id = WeightId(i as u32);
        backend.write_weight(id, WeightPart::Data, 0, &bytes[..half]).unwrap();
        backend.write_weight(id, WeightPart::Data, half as u64, &bytes[half..]).unwrap();
    }
    block_on(backend.prepare(plan, options)).unwrap();
}

/// Rows as long as large vocabularies make them, with logits whose powers of e are no numbers, on
/// every variant; what lies between and behind the rows is not looked at and not written.
#[test]
fn cross_entropy_of_large_logits() {
    const VOCAB: u32 = 128_257;
    const STRIDE: u32 = 128_320;
    const GUARD: u32 = 0x7fc0_1234; // A NaN: would spread.
    let Ok(mut harness) = block_on(Harness::new(Options::default())) else {
        assert!(open(Options::default()).is_none());
        return;
    };
    // Flat; one that stands out by far; likely ones all over; far below zero.
    let logit = |row: u32, i: u32| -> f32 {
        let noise = threefry2x32([row, 5], [i, 0])[0] as f32 / u32::MAX as f32;
        match row {
            0 => 3.0,
            1 => noise + if i == 77_777 { 300.0 } else { 0.0 },
            2 => noise * 400.0 - 100.0,
            _ => noise * 4.0 - 3000.0,
        }
    };
    let targets = [VOCAB - 1, 77_777, 256, 0];
    let rows: Vec<Vec<f32>> = (0..4).map(|r| (0..VOCAB).map(|i| logit(r, i)).collect()).collect();
    let expected: Vec<f32> =
        rows.iter().zip(targets).map(|(row, target)| cross_entropy(row, target)).collect();
    let bits = rows.iter().flat_map(|row| {
        let padding = (VOCAB..STRIDE).map(|_| GUARD);
        row.iter().map(|l| l.to_bits()).chain(padding)
    });
    let bytes =
        |words: Vec<u32>| -> Vec<u8> { words.iter().flat_map(|w| w.to_le_bytes()).collect() };
    let buffers = [
        (1, bytes(vec![VOCAB, STRIDE])),
        (2, bytes(bits.collect())),
        (3, bytes(targets.to_vec())),
        (4, bytes(vec![GUARD; 6])),
    ];
    let run = match harness.caps().subgroup {
        Some((min, _)) => min.min(32),
        None => 8,
    };
    for (reduce, overrides) in
        [("workgroup", vec![("WG", 256)]), ("subgroup", vec![("WG", 256), ("RUN", run)])]
    {
        let variant = kernels::variant("cross_entropy", &[reduce]).unwrap();
        if !harness.can_run(&variant) {
            continue;
        }
        let after = block_on(harness.run(variant, &overrides, &buffers, [4, 1, 1])).unwrap();
        let words: Vec<u32> = bytemuck::pod_collect_to_vec(&after[3]);
        assert_eq!(words[4..], [GUARD; 2], "{reduce}: written behind the last row");
        for (row, (&got, expected)) in words.iter().zip(&expected).enumerate() {
            let got = f32::from_bits(got);
            let error = (got - expected).abs();
            let allowed = 3e-6 * expected.abs() + 1e-6;
            assert!(error <= allowed, "{reduce}, row {row}: {got}, not {expected}");
        }
    }
}

#[test]
fn attention_split_over_the_context() {
    let Some(mut gpu) = open(Options::default()) else { return };
    let mut cpu = Cpu::new(Some(1)).unwrap();
    let plan = attention_plan();
    for kv_type in [KvType::F32, KvType::F16, KvType::Q8] {
        let options = RunOptions { context: 700, kv_type, max_tokens: 64 };
        load(&mut gpu, &plan, options);
        load(&mut cpu, &plan, options);
        for pos in (0..640).step_by(64) {
            let tokens: Vec<u32> = (pos..pos + 64).map(|p| p * 37 % plan.vocab).collect();
            let step = Step { tokens: &tokens, pos, outputs: Outputs::None };
            block_on(gpu.forward(step)).unwrap();
            block_on(cpu.forward(step)).unwrap();
        }
        // Backwards: a step forgets what is cached past it.
        for pos in [640, 639, 512, 511, 256, 255] {
            let step = Step { tokens: &[5], pos, outputs: Outputs::Last };
            block_on(gpu.forward(step)).unwrap();
            block_on(cpu.forward(step)).unwrap();
            let (got, want) = (block_on(gpu.logits()).unwrap(), block_on(cpu.logits()).unwrap());
            let error: f64 = want.iter().zip(&got).map(|(w, g)| f64::from(w - g).powi(2)).sum();
            let power: f64 = want.iter().map(|w| f64::from(*w).powi(2)).sum();
            assert!(error <= 1e-6 * power, "{kv_type:?}, {pos}: {:.1e}", error / power);
        }
        block_on(gpu.check_guards()).unwrap();
    }
}

/// Between operations that run as one there is nothing to keep, until somebody wants to see it.
#[test]
fn buffers_that_only_a_trace_sees_are_made_for_it() {
    let Some(mut gpu) = open(Options::default()) else { return };
    let plan = synthetic::plan("tiny", None).unwrap();
    block_on(synthetic::load(&mut gpu, &plan)).unwrap();
    let options = RunOptions { context: 32, kv_type: KvType::F16, max_tokens: 8 };
    block_on(gpu.prepare(&plan, options)).unwrap();
    let step = Step { tokens: &[3, 1, 4, 1, 5], pos: 0, outputs: Outputs::Last };
    block_on(gpu.forward(step)).unwrap();
    let expected = block_on(gpu.logits()).unwrap();
    let before = gpu.allocated_bytes();
    let mut seen = 0;
    block_on(gpu.trace(step, &mut |_, values| seen += values.len())).unwrap();
    assert!(seen > 0 && gpu.allocated_bytes() > before);
    let after = gpu.allocated_bytes();
    block_on(gpu.trace(step, &mut |_, _| ())).unwrap();
    block_on(gpu.forward(step)).unwrap();
    assert_eq!(gpu.allocated_bytes(), after);
    assert_eq!(block_on(gpu.logits()).unwrap(), expected);
    block_on(gpu.check_guards()).unwrap();
}

/// Calls outside the contract, and requests that no device can meet, are errors of the right kind;
/// what comes after them works.
#[test]
fn errors_are_typed_and_leave_a_clean_state() {
    let Some(mut gpu) = open(Options::default()) else { return };
    let plan = attention_plan();
    let options = RunOptions { context: 32, kv_type: KvType::F16, max_tokens: 8 };
    let is_invalid =
        |r: Result<(), BackendError>| matches!(r, Err(BackendError::InvalidCall { .. }));
    let forward = |gpu: &mut Gpu, tokens: &[u32], pos| {
        block_on(gpu.forward(Step { tokens, pos, outputs: Outputs::Last }))
    };
    assert!(is_invalid(forward(&mut gpu, &[1], 0)), "nothing is prepared");

    let huge = WeightKind::Matrix { n: 4, k: u32::MAX - 63, dtype: MatrixType::F32 };
    let specs = [WeightSpec { name: "huge".into(), kind: huge }];
    match block_on(gpu.allocate(&specs)) {
        Err(BackendError::OutOfMemory { .. } | BackendError::Unsupported { .. }) => {}
        other => panic!("rows of 16 GiB: {other:?}"),
    }
    assert_eq!(gpu.allocated_bytes(), 0, "nothing stays allocated");

    load(&mut gpu, &plan, options);
    assert!(is_invalid(forward(&mut gpu, &[], 0)));
    assert!(is_invalid(forward(&mut gpu, &[1; 9], 0)));
    assert!(is_invalid(forward(&mut gpu, &[plan.vocab], 0)));
    assert!(is_invalid(forward(&mut gpu, &[1, 2], 31)));
    assert!(is_invalid(forward(&mut gpu, &[1], u32::MAX)));
    assert!(is_invalid(forward(&mut gpu, &[1], 1)), "position 0 is not in the cache");
    let lost = |gpu: &mut Gpu, targets: &[u32]| block_on(gpu.cross_entropy(targets)).map(|_| ());
    assert!(is_invalid(lost(&mut gpu, &[1])), "there are no logits");
    forward(&mut gpu, &[1, 2], 0).unwrap();
    assert!(is_invalid(lost(&mut gpu, &[1, 2])), "one row");
    assert!(is_invalid(lost(&mut gpu, &[plan.vocab])));
    lost(&mut gpu, &[plan.vocab - 1]).unwrap();
    block_on(gpu.forward(Step { tokens: &[1], pos: 0, outputs: Outputs::None })).unwrap();
    assert_eq!(block_on(gpu.cross_entropy(&[])), Ok(vec![]));
    let write = |gpu: &mut Gpu, id, offset, len| {
        gpu.write_weight(WeightId(id), WeightPart::Data, offset, &vec![0; len])
    };
    assert!(is_invalid(write(&mut gpu, 9, 0, 4)));
    assert!(is_invalid(write(&mut gpu, 0, 2, 4)));
    assert!(is_invalid(write(&mut gpu, 0, u64::MAX - 3, 8)));
    let sampling = Sampling::greedy();
    let decode = Decode { feed: None, pos: 0, count: 1, ahead: 0, sampling: &sampling, stop: &[] };
    let drawn = |gpu: &mut Gpu, d| block_on(gpu.decode(d)).map(|_| ());
    assert!(is_invalid(drawn(&mut gpu, decode)), "there are no logits");
    assert!(is_invalid(drawn(&mut gpu, Decode { feed: Some(1), count: 0, ..decode })));
    assert!(is_invalid(drawn(&mut gpu, Decode { feed: Some(1), count: 33, ..decode })));
    let hot = Sampling { temperature: f32::NAN, ..sampling };
    assert!(is_invalid(drawn(&mut gpu, Decode { feed: Some(1), sampling: &hot, ..decode })));

    let too_long = RunOptions { context: u32::MAX, ..options };
    match block_on(gpu.prepare(&plan, too_long)) {
        Err(BackendError::OutOfMemory { .. } | BackendError::Unsupported { .. }) => {}
        other => panic!("a context of 2^32: {other:?}"),
    }
    block_on(gpu.prepare(&plan, options)).unwrap();
    forward(&mut gpu, &[1, 2, 3], 0).unwrap();
    let first = block_on(gpu.decode(Decode { pos: 3, count: 20, ..decode })).unwrap();
    assert_eq!(first.len(), 20);
    forward(&mut gpu, &[1, 2, 3], 0).unwrap();
    // Twice as many in two calls are the same; the first stop id ends the text.
    let mut again = block_on(gpu.decode(Decode { pos: 3, count: 5, ..decode })).unwrap();
    let more = Decode { feed: Some(again[4]), pos: 7, count: 15, ..decode };
    again.extend(block_on(gpu.decode(more)).unwrap());
    assert_eq!(again, first);
    // So are those of calls that let the device go on meanwhile, however many each asks for.
    forward(&mut gpu, &[1, 2, 3], 0).unwrap();
    let mut ahead = Vec::new();
    for count in [1, 1, 2, 4, 8, 3, 1] {
        let feed = ahead.last().copied();
        let pos = 3 + (ahead.len() as u32).saturating_sub(1);
        let rest = 20 - ahead.len() as u32 - count;
        let some = Decode { feed, pos, count, ahead: rest, ..decode };
        ahead.extend(block_on(gpu.decode(some)).unwrap());
    }
    assert_eq!(ahead, first);
    // What was drawn ahead is dropped when another text, or another way of drawing, comes in between.
    forward(&mut gpu, &[1, 2, 3], 0).unwrap();
    let some = Decode { pos: 3, count: 2, ahead: 20, ..decode };
    let two = block_on(gpu.decode(some)).unwrap();
    assert_eq!(two, first[..2]);
    assert!(is_invalid(block_on(gpu.logits()).map(|_| ())), "they are of a later position");
    let other = Decode { feed: Some(two[1] ^ 1), pos: 4, count: 3, ahead: 9, ..decode };
    let expected = block_on(gpu.decode(other)).unwrap();
    forward(&mut gpu, &[1, 2, 3, first[0], two[1] ^ 1], 0).unwrap();
    assert_eq!(block_on(gpu.decode(Decode { pos: 5, count: 3, ..decode })).unwrap(), expected);
    let noisy = Sampling { temperature: 0.5, ..sampling };
    block_on(gpu.decode(Decode {
        pos: 5,
        feed: Some(first[0]),
        sampling: &noisy,
        ahead: 5,
        ..decode
    }))
    .unwrap();
    assert!(is_invalid(drawn(&mut gpu, Decode { pos: 3, count: 20, ahead: 20, ..decode })));
    forward(&mut gpu, &[1, 2, 3], 0).unwrap();
    assert_eq!(block_on(gpu.decode(Decode { pos: 3, count: 20, ..decode })).unwrap(), first);

    forward(&mut gpu, &[1, 2, 3], 0).unwrap();
    let stop = [first[6]];
    let stopped =
        block_on(gpu.decode(Decode { pos: 3, count: 20, stop: &stop, ..decode })).unwrap();
    let end = first.iter().position(|id| stop.contains(id)).unwrap();
    assert_eq!(stopped, first[..=end]);
}

/// What was ready to run, and what is asked for anew, says that the device is lost; nothing hangs.
#[test]
fn a_lost_device_is_an_error() {
    let Some(mut gpu) = open(Options::default()) else { return };
    let plan = attention_plan();
    let options = RunOptions { context: 64, kv_type: KvType::F16, max_tokens: 8 };
    load(&mut gpu, &plan, options);
    let step = Step { tokens: &[1, 2, 3], pos: 0, outputs: Outputs::Last };
    block_on(gpu.forward(step)).unwrap();
    gpu.destroy();

    let is_lost = |r: Result<(), BackendError>| matches!(r, Err(BackendError::DeviceLost { .. }));
    let sampling = Sampling::greedy();
    let decode = Decode { feed: None, pos: 3, count: 4, ahead: 0, sampling: &sampling, stop: &[] };
    assert!(is_lost(block_on(gpu.logits()).map(|_| ())));
    assert!(is_lost(block_on(gpu.cross_entropy(&[1])).map(|_| ())));
    assert!(is_lost(block_on(gpu.decode(decode)).map(|_| ())));
    assert!(is_lost(block_on(gpu.forward(step))));
    assert!(is_lost(block_on(gpu.prepare(&plan, options))));
    assert!(is_lost(block_on(gpu.allocate(&plan.weights))));
}
