//! The `bitnet` program from the outside: exit codes, what is on stdout and on stderr, signals.
#![cfg(feature = "cli")]

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const COMMANDS: [&str; 12] = [
    "run",
    "chat",
    "generate",
    "logits",
    "tokenize",
    "inspect",
    "bench",
    "trace",
    "eval",
    "quantize",
    "devices",
    "completions",
];

/// A model of a few hundred kilobytes.
fn mini() -> String {
    fixture("qwen3-mini/gguf/qwen3-mini-TQ1_0.gguf").display().to_string()
}

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// A fresh folder for a test.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli").join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// The program, with nothing of the caller's environment that it looks at.
fn command(args: &[&str]) -> Command {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli/home");
    std::fs::create_dir_all(&home).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
    for name in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME", "XDG_STATE_HOME"] {
        command.env_remove(name);
    }
    command
        .env("HOME", &home)
        .env("HF_HOME", home.join("hf"))
        // Nothing listens there.
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .args(args)
        .stdin(Stdio::null());
    command
}

fn bitnet(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn with_input(args: &[&str], input: &str) -> Output {
    let mut child = command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The program may end before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Asserts that it went well, and gives what was on stdout.
#[track_caller]
fn ok(output: Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn json(output: Output) -> Value {
    let out = ok(output);
    assert_eq!(out.lines().count(), 1, "one line of JSON: {out}");
    serde_json::from_str(&out).unwrap()
}

/// Asserts that it failed with `code`, said why in one line on stderr, and printed nothing.
#[track_caller]
fn fails(code: i32, args: &[&str], parts: &[&str]) -> String {
    let output = bitnet(args);
    let message = text(&output.stderr).to_string();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    assert_eq!(text(&output.stdout), "", "{args:?}");
    assert!(message.starts_with("error: "), "{args:?}: {message}");
    for part in parts {
        assert!(message.contains(part), "{args:?}: {message:?} does not say {part:?}");
    }
    // Usage errors of the argument parser point to --help in further lines.
    if code == 1 {
        assert_eq!(message.lines().count(), 1, "{args:?}: {message}");
    }
    message
}

#[test]
fn help_and_version() {
    let help = ok(bitnet(&["--help"]));
    for name in COMMANDS {
        assert!(help.contains(name), "{name}");
        let own = ok(bitnet(&[name, "--help"]));
        assert!(own.contains(&format!("Usage: bitnet {name}")), "{own}");
    }
    assert!(help.contains("hf:owner/repo") && help.contains("Exit codes"), "{help}");
    assert_eq!(ok(bitnet(&["--version"])), format!("bitnet {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = ok(bitnet(&["completions", shell]));
        assert!(script.contains("bitnet") && script.contains("max-tokens"), "{shell}");
    }
    fails(2, &["completions", "tcsh"], &["tcsh", "bash"]);
}

#[test]
fn bad_usage() {
    let model = mini();
    let generate = |more: &[&str], parts: &[&str]| {
        let args = [&["generate", &model, "--ids", "1,2"], more].concat();
        fails(2, &args, parts);
    };
    assert_eq!(bitnet(&[]).status.code(), Some(2));
    assert_eq!(bitnet(&["nonsense"]).status.code(), Some(2));
    assert_eq!(bitnet(&["generate"]).status.code(), Some(2));
    generate(&["--max-tokens", "0"], &["max-tokens"]);
    generate(&["--max-tokens", "-1"], &["-1"]);
    generate(&["--temperature", "-1"], &["temperature", "0 to 100", "-1"]);
    generate(&["--temperature", "nan"], &["temperature"]);
    generate(&["--temperature", "hot"], &["temperature", "hot"]);
    generate(&["--top-p", "0"], &["top_p"]);
    generate(&["--top-p", "1.5"], &["top_p"]);
    generate(&["--min-p", "2"], &["min_p"]);
    generate(&["--repetition-penalty", "0"], &["repetition_penalty"]);
    generate(&["--presence-penalty", "1e9"], &["presence_penalty"]);
    generate(&["--stop", ""], &["stop"]);
    generate(&["--seed", "x"], &["seed"]);
    generate(&["--threads", "0"], &["threads"]);
    generate(&["--context", "0"], &["context"]);
    generate(&["--kv", "f64"], &["f64", "q8"]);
    generate(&["--backend", "tpu"], &["tpu", "cpu"]);
    generate(&["--logprobs", "3"], &["--json"]);
    generate(&["--prompt", "x"], &["--ids"]);
    fails(2, &["generate", &model, "--ids", "640", "--backend", "cpu"], &["640"]);
    fails(2, &["generate", &model, "--ids", "1,4294967296"], &["4294967296"]);
    fails(2, &["generate", &model, "--ids", ""], &["ids"]);
    fails(2, &["generate", &model, "--prompt", "", "--backend", "cpu"], &["empty"]);
    fails(2, &["generate", &model], &["no prompt"]);
    fails(2, &["run", &model], &["no prompt"]);
    fails(2, &["run", "-p", "x", "--system", "y"], &["--chat"]);
    fails(2, &["inspect", "hf:owner"], &["hf:owner/repo"]);
    fails(2, &["inspect", "hf:a/b/../c"], &["hf:owner/repo"]);
    fails(2, &["tokenize", &model, "--decode", "640"], &["640"]);
    fails(2, &["tokenize", &model, "x", "--decode", "1"], &["--decode"]);
    fails(2, &["bench", &model, "-p", "0"], &["prompt-tokens"]);
    fails(2, &["bench", &model, "-p", "5000", "--backend", "cpu"], &["context"]);
}

#[test]
fn models_that_are_none() {
    let dir = folder("none");
    let path = |name: &str| dir.join(name).display().to_string();
    std::fs::write(dir.join("garbage.gguf"), [0x9d; 5000]).unwrap();
    std::fs::write(dir.join("empty.gguf"), []).unwrap();
    std::fs::write(dir.join("text.gguf"), "GGUFno").unwrap();
    let good = std::fs::read(mini()).unwrap();
    std::fs::write(dir.join("half.gguf"), &good[..good.len() / 2]).unwrap();
    std::fs::create_dir(dir.join("folder")).unwrap();
    std::fs::write(dir.join("folder/model.gguf"), &good).unwrap();
    std::fs::create_dir(dir.join("bad")).unwrap();
    std::fs::write(dir.join("bad/config.json"), "{").unwrap();
    for command in
        [&["run", "-p", "x"][..], &["inspect"], &["tokenize", "--decode", "1"], &["bench"]]
    {
        let fails = |model: &str, parts: &[&str]| {
            let model = path(model);
            let mut args = command.to_vec();
            args.insert(1, &model);
            if ["run", "bench"].contains(&command[0]) {
                args.extend(["--backend", "cpu"]);
            }
            fails(1, &args, parts);
        };
        fails("missing.gguf", &["missing.gguf", "No such file"]);
        fails("garbage.gguf", &["neither a GGUF nor a safetensors"]);
        fails("empty.gguf", &["empty.gguf", "byte 0"]);
        fails("text.gguf", &["text.gguf", "byte 6"]);
        fails("folder", &["config.json", "model.gguf"]);
        fails("bad", &["error"]);
    }
    // The header of this one is whole; its length says that the rest is not there.
    fails(1, &["run", "-p", "x", "--backend", "cpu", &path("half.gguf")], &["end"]);
}

#[cfg(unix)]
#[test]
fn unreadable_files() {
    use std::os::unix::fs::PermissionsExt;
    let path = folder("unreadable").join("m.gguf");
    std::fs::copy(mini(), &path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).unwrap();
    // The super-user reads everything.
    if std::fs::File::open(&path).is_err() {
        fails(1, &["inspect", &path.display().to_string()], &["ermission"]);
    }
    fails(1, &["inspect", "/dev/null"], &["error"]);
}

#[test]
fn generate_is_repeatable_and_json_agrees_with_text() {
    let model = mini();
    let base =
        ["generate", &model, "--ids", "1,2,3", "-n", "12", "--ignore-eos", "--backend", "cpu"];
    let with = |more: &[&str]| bitnet(&[&base[..], more].concat());
    let first = json(with(&["--json", "--seed", "5", "-t", "1"]));
    let again = json(with(&["--json", "--seed", "5", "-t", "1", "--threads", "1"]));
    let other = json(with(&["--json", "--seed", "6", "-t", "1"]));
    assert_eq!(first["ids"], again["ids"]);
    assert_ne!(first["ids"], other["ids"]);
    assert_eq!(first["ids"].as_array().unwrap().len(), 12);
    assert_eq!(first["prompt_ids"], serde_json::json!([1, 2, 3]));
    assert_eq!(first["finish_reason"], "length");
    assert_eq!((&first["seed"], &first["backend"]), (&5.into(), &"cpu".into()));
    assert!(
        first["prefill_ms"].as_f64().unwrap() > 0.0
            && first["decode_tok_s"].as_f64().unwrap() > 0.0
    );
    let plain = with(&["--seed", "5", "-t", "1"]);
    assert!(text(&plain.stderr).contains("12 tokens"), "{}", text(&plain.stderr));
    assert_eq!(ok(plain), first["text"].as_str().unwrap());
    let quiet = with(&["--quiet"]);
    assert_eq!(text(&quiet.stderr), "");
    // Without a seed another one is drawn, and told.
    let (a, b) = (json(with(&["--json"])), json(with(&["--json"])));
    assert_ne!(a["seed"], b["seed"]);
}

#[test]
fn greedy_tokens_are_those_of_the_reference() {
    let expected = fixture("qwen3-mini/expected/qwen3-mini-TQ1_0.main.json");
    let expected: Value = serde_json::from_slice(&std::fs::read(expected).unwrap()).unwrap();
    let prompt = &expected["prompts"][0];
    let ids: Vec<String> =
        prompt["ids"].as_array().unwrap().iter().map(|v| v.to_string()).collect();
    let safe = prompt["greedy_safe_prefix"].as_u64().unwrap() as usize;
    let safe = safe.min(8);
    let args = [
        "generate",
        &mini(),
        "--ids",
        &ids.join(","),
        "-n",
        "32",
        "-t",
        "0",
        "--ignore-eos",
        "--backend",
        "cpu",
        "--kv",
        "f32",
        "--json",
    ];
    let got = json(bitnet(&args));
    let greedy = prompt["greedy"].as_array().unwrap();
    assert_eq!(&got["ids"].as_array().unwrap()[..safe], &greedy[..safe]);
}

#[test]
fn log_probabilities() {
    let args = [
        "generate",
        &mini(),
        "--ids",
        "1,2",
        "-n",
        "3",
        "-t",
        "0",
        "--ignore-eos",
        "--json",
        "--logprobs",
        "2",
        "--backend",
        "cpu",
    ];
    let got = json(bitnet(&args));
    let tokens = got["logprobs"].as_array().unwrap();
    assert_eq!(tokens.len(), 3);
    for (token, id) in tokens.iter().zip(got["ids"].as_array().unwrap()) {
        assert_eq!(&token["id"], id);
        // The most probable token is the drawn one.
        assert_eq!(token["top"][0][0], *id);
        assert!(token["logprob"].as_f64().unwrap() < 0.0);
        assert!(token["top"][1][1].as_f64() <= token["logprob"].as_f64());
    }
}

#[test]
fn prompts_come_from_options_files_and_stdin() {
    let dir = folder("prompts");
    let file = dir.join("prompt.txt");
    std::fs::write(&file, "Hello world").unwrap();
    let model = mini();
    let base = ["generate", &model, "-n", "2", "--json", "--backend", "cpu"];
    let ids = |output| json(output)["prompt_ids"].clone();
    let from_option = ids(bitnet(&[&base[..], &["-p", "Hello world"]].concat()));
    assert_eq!(
        ids(bitnet(&[&base[..], &["-f", &file.display().to_string()]].concat())),
        from_option
    );
    assert_eq!(ids(with_input(&base, "Hello world")), from_option);
    let chat = ids(bitnet(
        &[&base[..], &["-p", "Hello world", "--chat", "--system", "Be brief."]].concat(),
    ));
    assert!(chat.as_array().unwrap().len() > from_option.as_array().unwrap().len());
    fails(1, &[&base[..], &["-f", "no such file"]].concat(), &["no such file"]);
    std::fs::write(&file, [0xff, 0xfe]).unwrap();
    fails(1, &[&base[..], &["-f", &file.display().to_string()]].concat(), &["UTF-8"]);
}

#[test]
fn a_prompt_longer_than_the_context() {
    let long = "word ".repeat(200);
    let args = ["generate", &mini(), "-p", &long, "--context", "64", "--backend", "cpu"];
    fails(1, &args, &["tokens", "64"]);
}

#[test]
fn a_huge_context_costs_nothing_until_it_is_used() {
    let args = ["generate", &mini(), "--ids", "1", "-n", "2", "--context", "999999999"];
    ok(bitnet(&[&args[..], &["--backend", "cpu"]].concat()));
}

#[test]
fn the_default_model_tells_a_story() {
    let out = bitnet(&["run", "-n", "12", "--seed", "1", "--backend", "cpu"]);
    let stderr = text(&out.stderr).to_string();
    let story = ok(out);
    assert!(story.starts_with("Once upon a time") && story.len() > 30, "{story}");
    assert!(stderr.contains("tok/s"), "{stderr}");
    assert!(!story.contains('\x1b') && !stderr.contains('\x1b'), "no colours into pipes");
    let stopped =
        ok(bitnet(&["run", "-n", "60", "-t", "0", "--stop", " was", "-q", "--backend", "cpu"]));
    assert!(!stopped.contains(" was"), "{stopped}");
}

#[test]
fn logits_are_written_whole_or_not_at_all() {
    let dir = folder("logits");
    let out = dir.join("logits.bin");
    let path = out.display().to_string();
    let model = mini();
    let run = |ids: &str, more: &[&str]| {
        let args = ["logits", &model, "--ids", ids, "--out", &path, "--backend", "cpu"];
        bitnet(&[&args[..], more].concat())
    };
    assert_eq!(ok(run("1,2,3", &[])), "");
    assert_eq!(std::fs::metadata(&out).unwrap().len(), 3 * 640 * 4);
    let bytes = std::fs::read(&out).unwrap();
    assert!(bytes.chunks_exact(4).all(|b| f32::from_le_bytes(b.try_into().unwrap()).is_finite()));
    // A failure leaves the old file alone, and nothing beside it.
    assert_eq!(run("1,640", &[]).status.code(), Some(2));
    assert_eq!(run("1,2,3", &["--context", "2"]).status.code(), Some(1));
    assert_eq!(std::fs::read(&out).unwrap(), bytes);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    fails(
        1,
        &["logits", &model, "--ids", "1", "--out", "/no/such/folder/x"],
        &["/no/such/folder/x"],
    );
    let folder = dir.display().to_string();
    fails(2, &["logits", &model, "--ids", "1", "--out", &folder], &["folder"]);
}

#[test]
fn tokenize_there_and_back() {
    let model = mini();
    let sentence = "Größe? 😀<|eot_id|>";
    let got = json(bitnet(&["tokenize", &model, sentence, "--json", "--no-bos"]));
    let ids: Vec<String> = got["ids"].as_array().unwrap().iter().map(|v| v.to_string()).collect();
    assert_eq!(ids.last().unwrap(), "638");
    assert_eq!(ids.len(), got["pieces"].as_array().unwrap().len());
    let back = ok(bitnet(&["tokenize", &model, "--decode", &ids.join(",")]));
    assert_eq!(back, format!("{sentence}\n"));
    let plain = json(bitnet(&["tokenize", &model, "--plain", sentence, "--json", "--no-bos"]));
    assert!(!plain["ids"].as_array().unwrap().contains(&638.into()));
    let bos = json(bitnet(&["tokenize", &model, "x", "--json", "--bos"]));
    assert_eq!(bos["ids"][0], 630);
    assert_eq!(json(with_input(&["tokenize", &model, "--json", "--no-bos"], sentence)), got);
    assert_eq!(ok(bitnet(&["tokenize", &model, "--no-bos", ""])), "");
    // One token a line, quoted.
    assert_eq!(ok(bitnet(&["tokenize", &model, "--no-bos", "\n"])), "198\t\"\\n\"\n");
}

#[test]
fn inspect_every_kind_of_model() {
    let list = [
        ("bitnet2b4t-mini/gguf/bitnet2b4t-mini-I2_S.gguf", "bitnet-b1.58", "GGUF"),
        ("llama158-mini/gguf/llama158-mini-TQ2_0-q6k.gguf", "llama", "GGUF"),
        ("onebit-mini/gguf/onebit-mini-TQ2_0-scale.gguf", "bitnet", "GGUF"),
        ("qwen3-mini/gguf/qwen3-mini-Q2_0.gguf", "qwen3", "GGUF"),
        ("bitnet2b4t-mini/hf-packed-offline", "bitnet-b1.58", "safetensors"),
        ("qwen3-mini/hf-packed-autobitlinear/model.safetensors", "qwen3", "safetensors"),
    ];
    for (model, architecture, format) in list {
        let path = fixture(model).display().to_string();
        let facts = json(bitnet(&["inspect", &path, "--json", "--tensors", "--plan"]));
        assert_eq!(facts["architecture"], architecture, "{model}");
        assert_eq!(facts["format"], format, "{model}");
        assert_eq!(facts["vocab_size"], 640, "{model}");
        assert_eq!(facts["tokenizer"]["tokens"], 640, "{model}");
        assert_eq!(
            facts["tensors"].as_u64(),
            Some(facts["tensor_list"].as_array().unwrap().len() as u64)
        );
        assert!(facts["weight_bytes"].as_u64() > Some(0) && facts["plan"].is_string(), "{model}");
        let shown = ok(bitnet(&["inspect", &path]));
        assert!(shown.contains(architecture) && shown.contains("parameters"), "{shown}");
    }
    let default = json(bitnet(&["inspect", "--json"]));
    assert!(default["saved_against_f32"].as_f64().unwrap() > 0.9, "{default}");
}

#[test]
fn inspect_shows_what_it_can_of_a_model_that_cannot_run() {
    // The architecture's name, in place.
    let mut bytes = std::fs::read(mini()).unwrap();
    let key = b"general.architecture";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 4 + 8;
    assert_eq!(&bytes[at..at + 5], b"qwen3");
    bytes[at..at + 5].copy_from_slice(b"xwen3");
    let path = folder("strange").join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    let path = path.display().to_string();
    let facts = json(bitnet(&["inspect", &path, "--json"]));
    assert!(facts["error"].as_str().unwrap().contains("xwen3"), "{facts}");
    assert_eq!(facts["tokenizer"]["tokens"], 640);
    fails(1, &["run", &path, "-p", "x", "--backend", "cpu"], &["xwen3", "qwen3"]);
}

#[test]
fn bench_measures() {
    let args = [
        "bench",
        &mini(),
        "-p",
        "8",
        "-n",
        "4",
        "-r",
        "2",
        "--json",
        "--backend",
        "cpu",
        "--threads",
        "2",
    ];
    let got = json(bitnet(&args));
    assert_eq!(got["runs"].as_array().unwrap().len(), 2);
    assert!(got["prefill_tok_s"].as_f64() > Some(0.0) && got["decode_tok_s"].as_f64() > Some(0.0));
    assert_eq!((&got["backend"], &got["threads"]), (&"cpu".into(), &2.into()));
    let shown =
        ok(bitnet(&["bench", &mini(), "-p", "4", "-n", "2", "-r", "1", "--backend", "cpu"]));
    assert!(shown.contains("decode") && shown.contains("tok/s"), "{shown}");
}

#[test]
fn devices_are_listed() {
    let got = json(bitnet(&["devices", "--json"]));
    assert!(got["cpu"]["threads"].as_u64() > Some(0) && got["gpu"].is_array(), "{got}");
    assert!(ok(bitnet(&["devices"])).starts_with("cpu  "));
}

#[test]
fn trace_finds_a_backend_equal_to_itself() {
    let args = ["trace", &mini(), "--a", "cpu", "--b", "cpu", "--json", "--max-nmse", "1e-12"];
    let got = json(bitnet(&args));
    assert!(got.as_array().unwrap().len() > 10);
    assert!(got.as_array().unwrap().iter().all(|op| op["nmse"] == 0.0), "{got}");
}

#[test]
fn a_conversation_through_pipes() {
    let dir = folder("chat");
    let file = dir.join("talk.json");
    let path = file.display().to_string();
    let model = mini();
    let base = ["chat", &model, "-n", "5", "--seed", "1", "--backend", "cpu", "--context", "256"];
    let input = format!(
        "/system Be brief.\nHello\nAnd \\\nthen?\n\"\"\"\na\n\nb\n\"\"\"\n/undo\n/stats\n/nonsense\n/save {path}\n/exit\nnever\n"
    );
    let out = with_input(&base, &input);
    let stderr = text(&out.stderr).to_string();
    assert!(stderr.contains("tok/s") && stderr.contains("/nonsense"), "{stderr}");
    let shown = ok(out);
    assert!(shown.matches('\n').count() >= 3, "{shown}");
    let saved: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let roles: Vec<&str> =
        saved.as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
    assert_eq!(saved[1]["content"], "Hello");
    assert_eq!(saved[3]["content"], "And \nthen?");
    // Goes on from there; a context that is full forgets the oldest turns.
    let many = "Tell me more about it, please, will you?\n".repeat(8);
    let out = with_input(&[&base[..], &["--load", &path]].concat(), &many);
    assert!(text(&out.stderr).contains("forgot"), "{}", text(&out.stderr));
    ok(out);
    fails(1, &[&base[..], &["--load", "no such file"]].concat(), &["no such file"]);
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let mut child = command(&["run", "-n", "400", "-q", "--backend", "cpu"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 16]).unwrap();
    drop(stdout);
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), text(&out.stderr)), (Some(0), ""));
    let mut child = command(&["completions", "bash"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Waits for the end, but not for ever.
fn wait(mut child: Child) -> Output {
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("the program does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

#[cfg(unix)]
fn interrupt(child: &Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_text_in_order() {
    let mut child = command(&["run", "--backend", "cpu", "--seed", "1", "-t", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 18];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert!(first.starts_with(b"Once upon a time"));
    interrupt(&child);
    let out = wait(child);
    assert_eq!(out.status.code(), Some(130), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("cancelled"), "{}", text(&out.stderr));
    assert!(out.stdout.ends_with(b"\n"));
}

#[cfg(unix)]
#[test]
fn ctrl_c_still_gives_whole_json() {
    let child = command(&[
        "generate",
        "default",
        "-p",
        "Once upon a time there was",
        "--json",
        "--ignore-eos",
        "--backend",
        "cpu",
    ])
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    interrupt(&child);
    let out = wait(child);
    assert_eq!(out.status.code(), Some(130), "{}", text(&out.stderr));
    // Too early for an answer, or a whole one.
    if !out.stdout.is_empty() {
        let answer: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(answer["finish_reason"], "cancelled");
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_the_answer_and_not_the_chat() {
    let mut child = command(&["chat", "--backend", "cpu", "--seed", "1", "-t", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "Tell me a long story about a fox and a crow.").unwrap();
    let mut first = [0; 4];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    interrupt(&child);
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut rest = String::new();
    stdout.read_line(&mut rest).unwrap();
    writeln!(stdin, "/stats\n/exit").unwrap();
    drop(stdin);
    std::io::copy(&mut stdout, &mut std::io::sink()).unwrap();
    let out = wait(child);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("cancelled"), "{}", text(&out.stderr));
}
