//! Sessions on the embedded default model: transcripts, stopping, cache reuse, limits.
//!
//! `UPDATE_GOLDEN=1 cargo test --test generate` rewrites the transcripts.

use bitnet_rust::error::Error;
use bitnet_rust::sampling::Sampling;
use bitnet_rust::session::{
    Completion, Device, DeviceChoice, DeviceOptions, Event, FinishReason, LoadOptions, Phase,
    Prompt, Request, Session, files,
};
use bitnet_rust::tokenizer::Message;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn model() -> PathBuf {
    root().join("models/tales.gguf")
}

fn open(choice: DeviceChoice) -> Option<Device> {
    let options = DeviceOptions { choice, ..DeviceOptions::default() };
    match pollster::block_on(Device::open(&options)) {
        Ok((device, _)) => Some(device),
        Err(e) if std::env::var_os("REQUIRE_GPU").is_none() => {
            eprintln!("skipped, no GPU: {e}");
            None
        }
        Err(e) => panic!("REQUIRE_GPU is set, but {e}"),
    }
}

fn session_with(options: LoadOptions) -> Session {
    let device = open(DeviceChoice::Cpu).unwrap();
    files::load_on(device, &model(), &options, &mut |_| true).unwrap()
}

fn session() -> Session {
    session_with(LoadOptions::default())
}

/// Runs a request to its end: text, ids, result.
fn run(session: &mut Session, request: Request) -> (String, Vec<u32>, Completion) {
    let mut generation = session.start(request).unwrap();
    let (mut text, mut ids) = (String::new(), Vec::new());
    loop {
        match pollster::block_on(session.next(&mut generation)).unwrap() {
            Event::Prefill { .. } => {}
            Event::Text(piece) => {
                text += &piece.text;
                ids.extend(piece.ids);
            }
            Event::Finished(completion) => return (text, ids, completion),
        }
    }
}

fn greedy(prompt: &str, max_tokens: u32) -> Request {
    Request { max_tokens: Some(max_tokens), sampling: Sampling::greedy(), ..Request::text(prompt) }
}

fn sampled(prompt: &str, seed: u64) -> Request {
    Request {
        max_tokens: Some(48),
        sampling: Sampling { seed, ..Sampling::default() },
        ..Request::text(prompt)
    }
}

fn golden(name: &str, text: &str, choice: DeviceChoice) {
    let path = root().join("tests/golden/generate").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() && choice == DeviceChoice::Cpu {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    let same = if choice == DeviceChoice::Cpu { golden == text } else { golden.starts_with(text) };
    assert!(same, "{name}: {text:?}, expected {golden:?}");
}

/// A greedy and a sampled text. Machines differ in the last bits of their floats; sooner or later
/// that moves an activation to another int8, and after that a close decision. So the texts are short,
/// and only the CPU is held to all of them.
fn transcripts(choice: DeviceChoice, max_tokens: u32) {
    let Some(device) = open(choice) else { return };
    let options = LoadOptions::default();
    let mut session = files::load_on(device, &model(), &options, &mut |_| true).unwrap();
    let requests = [
        ("greedy.txt", greedy("Once upon a time", max_tokens)),
        (
            "sampled-seed-7.txt",
            Request { max_tokens: Some(max_tokens), ..sampled("The old king", 7) },
        ),
    ];
    for (name, request) in requests {
        golden(name, &run(&mut session, request).0, choice);
    }
}

#[test]
fn transcripts_cpu() {
    transcripts(DeviceChoice::Cpu, 24);
}

/// The same seed begins the same text on every machine.
#[cfg(feature = "gpu")]
#[test]
fn transcripts_gpu() {
    transcripts(DeviceChoice::Gpu, 16);
}

#[test]
fn a_seed_repeats_and_another_differs() {
    let mut s = session();
    let first = run(&mut s, sampled("Once", 1)).1;
    assert_eq!(run(&mut s, sampled("Once", 1)).1, first);
    assert_ne!(run(&mut s, sampled("Once", 2)).1, first);
}

#[test]
fn chunks_of_the_prompt_do_not_change_the_text() {
    // Longer than one chunk of the CPU (128 tokens).
    let prompt = "There was once a miller who had three sons, and a cat. ".repeat(14);
    let mut s = session();
    let (_, long, end) = run(&mut s, greedy(&prompt, 12));
    assert!(end.usage.prompt_tokens > 130);
    // The same, with all but one token of the prompt already in the cache.
    let (_, again, end) = run(&mut s, greedy(&prompt, 12));
    assert_eq!(end.usage.cached_tokens, end.usage.prompt_tokens - 1);
    assert_eq!(long, again);
}

#[test]
fn a_chat_reuses_the_cache_between_turns() {
    let mut s = session();
    let mut messages = vec![Message::new("user", "Tell me a story about a fox and a crow.")];
    let request = |messages: &[Message]| Request {
        max_tokens: Some(24),
        sampling: Sampling::greedy(),
        ..Request::chat(messages.to_vec())
    };
    let (answer, _, first) = run(&mut s, request(&messages));
    messages.push(Message::new("assistant", &answer));
    messages.push(Message::new("user", "And then?"));
    let (_, _, second) = run(&mut s, request(&messages));
    // Prompt and answer, but for the last token of the answer, which was never fed.
    let known = first.usage.prompt_tokens + first.usage.completion_tokens - 1;
    assert_eq!(second.usage.cached_tokens, known, "{second:?}");
}

#[test]
fn stop_strings_end_the_text_and_are_not_shown() {
    let mut s = session();
    let (text, _, _) = run(&mut s, greedy("Once upon a time", 64));
    let word = text.split_whitespace().nth(8).unwrap().to_string();
    let request = Request { stop: vec![word.clone()], ..greedy("Once upon a time", 64) };
    let (stopped, _, end) = run(&mut s, request);
    assert_eq!(end.reason, FinishReason::Stop);
    assert_eq!(stopped, text[..text.find(&word).unwrap()]);
}

#[test]
fn a_full_context_ends_the_text() {
    let mut s = session_with(LoadOptions { context: Some(32), ..LoadOptions::default() });
    let request = Request { ignore_eos: true, ..greedy("Once upon a time", 1000) };
    let (_, ids, end) = run(&mut s, request);
    assert_eq!(end.reason, FinishReason::ContextFull);
    // The last token is drawn from a full cache, and not fed.
    assert_eq!(end.usage.prompt_tokens + ids.len(), 33);
}

#[test]
fn an_abandoned_generation_leaves_the_session_usable() {
    let mut s = session();
    let (whole, _, _) = run(&mut s, greedy("Once upon a time", 16));
    s.reset();
    let mut generation = s.start(greedy("The wolf said to the", 64)).unwrap();
    for _ in 0..4 {
        pollster::block_on(s.next(&mut generation)).unwrap();
    }
    drop(generation);
    assert_eq!(run(&mut s, greedy("Once upon a time", 16)).0, whole);
}

#[test]
fn logprobs_are_those_of_the_logits() {
    let mut s = session();
    let mut generation =
        s.start(Request { logprobs: Some(3), ..greedy("Once upon a time", 4) }).unwrap();
    let mut seen = 0;
    loop {
        match pollster::block_on(s.next(&mut generation)).unwrap() {
            Event::Text(piece) => {
                for (id, list) in piece.ids.iter().zip(&piece.logprobs) {
                    // The token itself, then the three likeliest, of which greedy takes the first.
                    assert_eq!(list.len(), 4);
                    assert_eq!((list[0].id, list[1].id), (*id, *id));
                    assert!(list[1].logprob >= list[2].logprob && list[0].logprob < 0.0);
                    let mass: f32 = list[1..].iter().map(|l| l.logprob.exp()).sum();
                    assert!(mass <= 1.0);
                    seen += 1;
                }
            }
            Event::Finished(_) => break,
            Event::Prefill { .. } => {}
        }
    }
    assert_eq!(seen, 4);
    let with = {
        let request = Request { logprobs: Some(0), ..sampled("The old king", 7) };
        run(&mut s, request).1
    };
    assert_eq!(with, run(&mut s, sampled("The old king", 7)).1);
}

#[test]
fn requests_out_of_range_are_refused() {
    let mut s = session_with(LoadOptions { context: Some(16), ..LoadOptions::default() });
    let mut code = |request: Request| s.start(request).err().expect("an error").code();
    assert_eq!(code(greedy("x", 0)), "invalid_argument");
    let cold = Sampling { temperature: -1.0, ..Sampling::default() };
    assert_eq!(code(Request { sampling: cold, ..Request::text("x") }), "invalid_argument");
    assert_eq!(code(Request { stop: vec![String::new()], ..greedy("x", 1) }), "invalid_argument");
    assert_eq!(code(Request::new(Prompt::Ids(vec![]))), "invalid_argument");
    assert_eq!(code(Request::new(Prompt::Ids(vec![4096]))), "invalid_argument");
    assert_eq!(code(Request::new(Prompt::Ids(vec![5; 17]))), "context_full");
    assert_eq!(run(&mut s, Request::new(Prompt::Ids(vec![5; 16]))).1.len(), 1);
}

#[test]
fn loading_can_be_cancelled_and_shows_its_progress() {
    let device = || open(DeviceChoice::Cpu).unwrap();
    let (mut last, mut phases) = (0, Vec::new());
    files::load_on(device(), &model(), &LoadOptions::default(), &mut |p| {
        assert!(p.done_bytes >= last);
        last = p.done_bytes;
        assert_eq!(p.total_bytes, Some(std::fs::metadata(model()).unwrap().len()));
        phases.push(p.phase);
        true
    })
    .unwrap();
    assert_eq!(last, std::fs::metadata(model()).unwrap().len());
    assert_eq!(phases.last(), Some(&Phase::Prepare));
    let result = files::load_on(device(), &model(), &LoadOptions::default(), &mut |_| false);
    assert!(matches!(result.err(), Some(Error::Cancelled)));
}

#[test]
fn windows_of_an_evaluation_count_every_token_once() {
    use bitnet_rust::session::eval::evaluate;
    let text = "Once upon a time there was a king who had three daughters. ".repeat(12);
    let run = |context| {
        let mut s = session_with(LoadOptions { context: Some(context), ..LoadOptions::default() });
        pollster::block_on(evaluate(&mut s, &text, None, &mut |_, _| true)).unwrap()
    };
    let (whole, windows) = (run(512), run(48));
    assert_eq!((whole.tokens, whole.chars), (windows.tokens, windows.chars));
    assert_eq!(whole.chars, text.chars().count());
    // Far better than chance (ln 4096 = 8.3).
    assert!(windows.nats_per_token() < 4.0, "{windows:?}");
}

/// Each token is predicted from as many before it as the stride says, window by window.
#[test]
fn windows_of_an_evaluation_are_cut_as_said() {
    use bitnet_rust::session::eval::evaluate;
    const CONTEXT: usize = 24;
    let text = "There was once a king who had three daughters, and the youngest of them was so fair \
        that the sun himself, who has seen so much, wondered whenever he shone in her face. Close \
        by the castle lay a great dark forest.";
    let options = LoadOptions { context: Some(CONTEXT as u32), ..LoadOptions::default() };
    let mut s = session_with(options);
    let ids = s.encode(&Prompt::Text(text.to_string())).unwrap().0;
    assert!(ids.len() > 2 * CONTEXT, "{}", ids.len());
    for stride in [7, CONTEXT] {
        let mut nats = 0.0;
        for i in 1..ids.len() {
            // Windows after the first end `stride` tokens apart.
            let end = CONTEXT + i.saturating_sub(CONTEXT).div_ceil(stride) * stride;
            let logits = pollster::block_on(s.logits(&ids[end - CONTEXT..i])).unwrap();
            let row = &logits[logits.len() - s.info().vocab_size as usize..];
            let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
            nats += sum.ln() - f64::from(row[ids[i] as usize]);
        }
        let outcome =
            pollster::block_on(evaluate(&mut s, text, Some(stride), &mut |_, _| true)).unwrap();
        let error = (outcome.nats / nats - 1.0).abs();
        assert!(error < 1e-3, "stride {stride}: {} nats, not {nats}", outcome.nats);
    }
    for stride in [0, CONTEXT + 1] {
        let outcome = pollster::block_on(evaluate(&mut s, text, Some(stride), &mut |_, _| true));
        assert!(matches!(outcome, Err(Error::InvalidArgument { .. })), "{outcome:?}");
    }
}

#[test]
fn tokens_that_nothing_predicts_have_no_cross_entropy() {
    let mut s = session_with(LoadOptions { context: Some(8), ..LoadOptions::default() });
    let mut nats = |ids: &[u32], first| pollster::block_on(s.cross_entropy(ids, first));
    for (ids, first) in [(&[][..], 0), (&[5], 0), (&[5], 1), (&[5, 6], 0), (&[5, 6], 3)] {
        let outcome = nats(ids, first);
        assert!(matches!(outcome, Err(Error::InvalidArgument { .. })), "{first}: {outcome:?}");
    }
    assert!(matches!(nats(&[5, 4096], 1), Err(Error::InvalidArgument { .. })));
    assert!(matches!(nats(&[5; 10], 1), Err(Error::ContextFull { .. })));
    // The last one needs no place.
    let all = nats(&[5, 6, 7, 8, 9, 10, 11, 12, 13], 1).unwrap();
    assert_eq!(all.len(), 8);
    let last = nats(&[5, 6, 7, 8, 9, 10, 11, 12, 13], 6).unwrap();
    assert_eq!(last.len(), 3);
    assert!(last.iter().zip(&all[5..]).all(|(a, b)| (a - b).abs() < 1e-2), "{last:?}, {all:?}");
}

/// The nats of a text must not depend on how the weights are stored or on what computes them.
#[test]
fn formats_and_machines_predict_a_text_alike() {
    use bitnet_rust::quantize::{LinearType, Options, TableType, quantize};
    use bitnet_rust::session::eval::evaluate;
    const TEXT: &str = "There was once a miller who had three sons, and when he came to die he \
        left them nothing but his mill, his donkey and his cat. The eldest took the mill, the \
        second took the donkey, and so there was nothing left for the youngest but the cat.\n\n\
        \"Alas!\" said he, \"my brothers can earn their bread together, but when I have eaten my \
        cat, and made myself a pair of gloves of his skin, I must die of hunger.\"\n\nThe cat \
        heard all this, but made as if he had not. \"Do not be troubled, master,\" he said. \"Give \
        me a bag, and have a pair of boots made for me, and you shall see that you are not so \
        badly off as you think.\"";
    let nats = |path: &Path, device: Device| {
        let mut session =
            files::load_on(device, path, &LoadOptions::default(), &mut |_| true).unwrap();
        let outcome =
            pollster::block_on(evaluate(&mut session, TEXT, None, &mut |_, _| true)).unwrap();
        assert_eq!(outcome.chars, TEXT.chars().count());
        outcome.nats_per_token()
    };
    let cpu = || open(DeviceChoice::Cpu).unwrap();
    let alike = |what: &str, a: f64, b: f64| {
        assert!((a / b - 1.0).abs() < 0.002, "{what}: {a} nats a token, not {b}");
    };

    let expected = nats(&model(), cpu());
    assert!((2.0..3.2).contains(&expected), "{expected}");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("alike");
    std::fs::create_dir_all(&folder).unwrap();
    for linears in [LinearType::TQ1_0, LinearType::TQ2_0] {
        let path = folder.join(format!("{linears:?}.gguf"));
        let options = Options { linears, tables: TableType::Q8_0, ..Options::default() };
        quantize(&model(), &path, &options, &mut |_| true).unwrap();
        alike(&format!("{linears:?}"), nats(&path, cpu()), expected);
    }
    if let Some(gpu) = open(DeviceChoice::Gpu) {
        alike("GPU", nats(&model(), gpu), expected);
    }
    // Packed safetensors, and the GGUF that was made of them.
    let mini = root().join("tests/fixtures/bitnet2b4t-mini");
    let packed = nats(&mini.join("hf-packed-offline"), cpu());
    alike("packed", packed, nats(&mini.join("gguf/bitnet2b4t-mini-I2_S.gguf"), cpu()));
}
