//! `quantize` against the files that the reference quantisers made of the same weights.

use std::path::{Path, PathBuf};

use bitnet_rust::format::{DType, Event, Metadata, TensorInfo, Value, gguf, gguf_write};
use bitnet_rust::quantize::{
    LinearType, Options, Progress, QuantizeError, Report, TableType, quantize,
};

use bitnet_rust::ternary::dense;

#[path = "common/malformed.rs"]
mod malformed;

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bitnet-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
    fn files(&self) -> Vec<String> {
        let names = std::fs::read_dir(&self.0).unwrap();
        names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Gguf {
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    bytes: Vec<u8>,
}

impl Gguf {
    fn open(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let mut parser = gguf::Parser::new(Some(bytes.len() as u64));
        assert_eq!(parser.next(&mut &bytes[..]).unwrap(), Event::Header);
        Gguf {
            metadata: parser.metadata().clone(),
            tensors: parser.tensors().to_vec(),
            bytes: bytes.clone(),
        }
    }
    fn tensor(&self, name: &str) -> (&TensorInfo, &[u8]) {
        let info = self.tensors.iter().find(|t| t.name == name);
        let info = info.unwrap_or_else(|| panic!("no {name}"));
        let mut data = &self.bytes[info.offset as usize..][..info.bytes as usize];
        if info.dtype == DType::I2_S {
            data = &data[..data.len() - 28]; // padding that means nothing
        }
        (info, data)
    }
}

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn run(input: &Path, output: &Path, options: Options) -> Result<Report, QuantizeError> {
    let mut last = 0;
    let report = quantize(input, output, &options, &mut |p: Progress<'_>| {
        assert!(p.done_bytes >= last && p.done_bytes <= p.total_bytes);
        last = p.done_bytes;
        true
    })?;
    assert_eq!(report.output_bytes, std::fs::metadata(output).unwrap().len());
    assert_eq!(report.tensors.len(), Gguf::open(output).tensors.len());
    Ok(report)
}

fn options(linears: LinearType, tables: TableType) -> Options {
    Options { linears, tables, ..Options::default() }
}

/// Quantises, and compares every tensor of the reference's file but those in `except`.
fn check(input: &str, reference: &str, options: Options, except: &[&str]) -> Report {
    let folder = Folder::new(&format!("{:?}", reference.split('/').next_back().unwrap()));
    let output = folder.join("out.gguf");
    let report = run(&fixture(input), &output, options).unwrap();
    assert_eq!(folder.files(), ["out.gguf"]);
    let (got, want) = (Gguf::open(&output), Gguf::open(&fixture(reference)));
    for info in &want.tensors {
        if except.contains(&&*info.name) {
            continue;
        }
        let ((a, got), (b, want)) = (got.tensor(&info.name), want.tensor(&info.name));
        assert_eq!((a.dtype, &a.shape), (b.dtype, &b.shape), "{}", info.name);
        assert!(got == want, "{}: other bytes than the reference's", info.name);
    }
    assert_eq!(got.tensors.len(), want.tensors.len());
    for (key, value) in want.metadata.iter() {
        // The converter of the fixtures writes scores, which BPE has no use for, and, as the
        // official one does, a placeholder for the chat template.
        if !["tokenizer.ggml.scores", "tokenizer.chat_template", "general.name"].contains(&key) {
            assert_eq!(got.metadata.get(key), Some(value), "{key}");
        }
    }
    report
}

#[test]
fn packed_to_i2_s_and_tq1_0_are_the_references_bytes() {
    let packed = "bitnet2b4t-mini/hf-packed-offline";
    let i2 = options(LinearType::I2_S, TableType::F16);
    let report = check(packed, "bitnet2b4t-mini/gguf/bitnet2b4t-mini-I2_S.gguf", i2, &[]);
    let exact = |t: &&bitnet_rust::quantize::TensorReport| t.sparsity.is_some();
    assert_eq!(report.tensors.iter().filter(exact).count(), 21);
    assert!(report.tensors.iter().filter(exact).all(|t| t.relative_error == 0.0));
    assert!((0.2..0.5).contains(&report.sparsity()), "{}", report.sparsity());
    assert_eq!(report.f32_bytes, 2 * report.f16_bytes);
    assert!(report.saved_against_f32() > 0.8 && report.saved_against_f16() > 0.6);
    assert!(report.notes.is_empty());
    let tq1 = options(LinearType::TQ1_0, TableType::F16);
    check(packed, "bitnet2b4t-mini/gguf/bitnet2b4t-mini-TQ1_0.gguf", tq1, &[]);
}

#[test]
fn packed_qwen3_to_tq1_0_is_the_references_bytes() {
    let tq1 = options(LinearType::TQ1_0, TableType::F16);
    check("qwen3-mini/hf-packed-autobitlinear", "qwen3-mini/gguf/qwen3-mini-TQ1_0.gguf", tq1, &[]);
}

#[test]
fn packed_llama_to_tq2_0_with_q6_k_is_the_references_bytes() {
    let q6 = options(LinearType::TQ2_0, TableType::Q6_K);
    // llama-quantize gives the embedding Q4_K there.
    let except = ["token_embd.weight"];
    let reference = "llama158-mini/gguf/llama158-mini-TQ2_0-q6k.gguf";
    let report = check("llama158-mini/hf-packed-bitlinear", reference, q6, &except);
    let head = report.tensors.iter().find(|t| t.name == "output.weight").unwrap();
    assert!((0.001..0.03).contains(&head.relative_error), "{}", head.relative_error);
}

#[test]
fn masters_give_what_their_ternary_files_give() {
    let folder = Folder::new("masters");
    let (a, b) = (folder.join("a.gguf"), folder.join("b.gguf"));
    let tq2 = options(LinearType::TQ2_0, TableType::F16);
    let report = run(&fixture("onebit-mini/hf-f16-online"), &a, tq2).unwrap();
    // Scales in tensors of their own are multiplied into the blocks.
    run(&fixture("onebit-mini/gguf/onebit-mini-TQ2_0-scale.gguf"), &b, tq2).unwrap();
    let (a, b) = (Gguf::open(&a), Gguf::open(&b));
    assert_eq!(a.tensors.len(), b.tensors.len());
    for t in &a.tensors {
        assert!(a.tensor(&t.name).1 == b.tensor(&t.name).1, "{}", t.name);
    }
    // Gaussian masters: half of their norm is lost, and the model was trained to live with it.
    let up = report.tensors.iter().find(|t| t.name == "blk.0.ffn_up.weight").unwrap();
    assert!((0.49..0.53).contains(&up.relative_error), "{}", up.relative_error);
}

#[test]
fn gguf_to_gguf_is_the_references_bytes() {
    let (i2, tq1) = (
        "bitnet2b4t-mini/gguf/bitnet2b4t-mini-I2_S.gguf",
        "bitnet2b4t-mini/gguf/bitnet2b4t-mini-TQ1_0.gguf",
    );
    check(i2, tq1, options(LinearType::TQ1_0, TableType::F16), &[]);
    check(tq1, i2, options(LinearType::I2_S, TableType::F16), &[]);
    // To its own type: the same file again, but for the padding.
    let folder = Folder::new("same");
    let output = folder.join("again.gguf");
    run(&fixture(tq1), &output, options(LinearType::TQ1_0, TableType::F16)).unwrap();
    assert!(std::fs::read(&output).unwrap() == std::fs::read(fixture(tq1)).unwrap());
}

#[test]
fn tables_of_eight_bits_are_near() {
    let folder = Folder::new("tables");
    let output = folder.join("q8.gguf");
    let q8 = options(LinearType::I2_S, TableType::Q8_0);
    let report = run(&fixture("bitnet2b4t-mini/hf-packed-offline"), &output, q8).unwrap();
    let embedding = report.tensors.iter().find(|t| t.name == "token_embd.weight").unwrap();
    assert_eq!((embedding.from, embedding.to), ("BF16", "Q8_0"));
    assert!((1e-4..0.01).contains(&embedding.relative_error), "{}", embedding.relative_error);
}

/// The packed llama fixture with every linear replaced by Gaussian floats and no
/// `quantization_config`: an ordinary model.
fn ordinary(folder: &Folder) -> PathBuf {
    let source = fixture("llama158-mini/hf-packed-bitlinear");
    let out = folder.join("ordinary");
    std::fs::create_dir_all(&out).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(source.join(name), out.join(name)).unwrap();
    }
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(source.join("config.json")).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("quantization_config");
    std::fs::write(out.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let (mut new_header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut state = 1u64;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    for (name, entry) in header {
        if name == "__metadata__" || name.ends_with("weight_scale") {
            continue;
        }
        let dims: Vec<u64> =
            entry["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect();
        let begin = data.len();
        let (dtype, shape) = if entry["dtype"] == "U8" {
            let shape = vec![4 * dims[0], dims[1]];
            for _ in 0..shape[0] * shape[1] {
                // Irwin-Hall: near enough to Gaussian.
                let gauss: f32 = (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
                data.extend((0.02 * gauss).to_le_bytes());
            }
            ("F32", shape)
        } else {
            let range = &entry["data_offsets"];
            let at = |i: usize| 8 + header_len + range[i].as_u64().unwrap() as usize;
            data.extend(&bytes[at(0)..at(1)]);
            (entry["dtype"].as_str().unwrap(), dims)
        };
        let entry = serde_json::json!({
            "dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()],
        });
        new_header.insert(name, entry);
    }
    let header = serde_json::Value::Object(new_header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    std::fs::write(out.join("model.safetensors"), file).unwrap();
    out
}

#[test]
fn an_ordinary_model_is_refused_unless_forced_and_nothing_is_left() {
    let folder = Folder::new("ordinary");
    let input = ordinary(&folder);
    let output = folder.join("out.gguf");
    std::fs::write(&output, "what was there before").unwrap();
    let i2 = options(LinearType::I2_S, TableType::F16);
    match run(&input, &output, i2) {
        Err(e @ QuantizeError::NotTernary { percent, .. }) => {
            assert!((45.0..55.0).contains(&percent));
            let message = e.to_string();
            assert!(message.contains("quantization_config") && message.contains("51 %"));
        }
        other => panic!("{other:?}"),
    }
    let mut left = folder.files();
    left.sort();
    assert_eq!(left, ["ordinary", "out.gguf"]);
    assert_eq!(std::fs::read(&output).unwrap(), b"what was there before");
    let report = run(&input, &output, Options { force: true, ..i2 }).unwrap();
    assert!((0.25..0.4).contains(&report.sparsity()), "{}", report.sparsity());
    // Its output is ternary in itself, so that turning it into another type needs no force.
    let again = folder.join("again.gguf");
    run(&output, &again, options(LinearType::TQ2_0, TableType::F16)).unwrap();
}

/// A llama GGUF, one of whose linears is not ternary, in several types.
#[test]
fn quantised_floats_are_not_taken_for_ternary() {
    let folder = Folder::new("floats");
    let model = Gguf::open(&fixture("llama158-mini/gguf/llama158-mini-TQ2_0-q6k.gguf"));
    let name = "blk.1.ffn_up.weight";
    let weights: Vec<f32> = (0..768 * 256).map(|i| (i as f32 * 0.7).sin()).collect();
    let f32_bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
    let mut rows = dense::Rows::new(dense::Source::F32, 256).unwrap();
    for dtype in [DType::F32, DType::F16, DType::Q8_0, DType::Q6_K] {
        let mut bytes = Vec::new();
        match dtype {
            DType::F32 => rows.to_f32(&f32_bytes, &mut bytes),
            DType::F16 => rows.to_f16(&f32_bytes, &mut bytes),
            DType::Q8_0 => rows.to_q8_0(&f32_bytes, &mut bytes),
            _ => rows.to_q6_k(&f32_bytes, &mut bytes),
        }
        .unwrap();
        let types: Vec<_> = model
            .tensors
            .iter()
            .map(|t| {
                let dtype = if t.name == name { dtype } else { t.dtype };
                (t.name.clone(), dtype, t.shape.clone())
            })
            .collect();
        let (mut file, infos) = gguf_write::header(&model.metadata, &types).unwrap();
        for info in &infos {
            file.resize(info.offset as usize, 0);
            file.extend(if info.name == name { &bytes } else { model.tensor(&info.name).1 });
        }
        let (input, output) = (folder.join("in.gguf"), folder.join("out.gguf"));
        std::fs::write(&input, file).unwrap();
        match run(&input, &output, Options::default()) {
            Err(QuantizeError::NotTernary { tensor, .. }) => assert_eq!(tensor, name),
            other => panic!("{dtype}: {other:?}"),
        }
        let forced = Options { force: true, ..Options::default() };
        let report = run(&input, &output, forced).unwrap();
        assert!(report.tensors.iter().all(|t| (t.relative_error > 0.1) == (t.name == name)));
    }
}

#[test]
fn a_stop_leaves_nothing() {
    let folder = Folder::new("stop");
    let output = folder.join("out.gguf");
    let mut calls = 0;
    let result = quantize(
        &fixture("bitnet2b4t-mini/hf-packed-offline"),
        &output,
        &Options::default(),
        &mut |_| {
            calls += 1;
            calls < 10
        },
    );
    assert!(matches!(result, Err(QuantizeError::Cancelled)));
    assert!(folder.files().is_empty());
}

#[test]
fn what_cannot_be_done_says_so() {
    let folder = Folder::new("errors");
    let output = folder.join("out.gguf");
    let packed = fixture("bitnet2b4t-mini/hf-packed-offline");
    let default = Options::default();
    let message = |input: &Path, output: &Path, options| match run(input, output, options) {
        Err(e) => e.to_string(),
        Ok(_) => panic!("{} was quantised", input.display()),
    };
    let text = message(&packed, &folder.join("no/such/folder/out.gguf"), default);
    assert!(text.starts_with("cannot write") && text.contains("out.gguf"), "{text}");
    assert!(message(&packed, &folder.0, default).starts_with("cannot write"));
    assert!(message(&folder.join("absent"), &output, default).contains("absent"));
    let copy = folder.join("copy.gguf");
    std::fs::copy(fixture("bitnet2b4t-mini/gguf/bitnet2b4t-mini-I2_S.gguf"), &copy).unwrap();
    assert!(message(&copy, &copy, default).contains("replace the input"));
    assert!(message(&packed.join("model.safetensors"), &output, default).contains("folder"));
    let rms = fixture("llama158-rms-mini/hf-packed-bitlinear-rms");
    assert!(message(&rms, &output, default).contains("use_rms_norm"));
    // Rows of 128 do not fit blocks of 256.
    let narrow = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/malformed/ok-folder");
    let text = message(&narrow, &output, options(LinearType::TQ2_0, TableType::F16));
    assert!(text.contains("blk.0.") && text.contains("256"), "{text}");
    run(&narrow, &output, default).unwrap();
}

#[test]
fn malformed_models_are_errors_and_leave_nothing() {
    let folder = Folder::new("malformed");
    let (input, output) = (folder.join("in"), folder.join("out.gguf"));
    let mut refused = 0;
    for case in malformed::cases() {
        let _ = std::fs::remove_file(&input);
        let _ = std::fs::remove_dir_all(&input);
        match &case.files[..] {
            [(name, bytes)] if name.is_empty() => std::fs::write(&input, bytes).unwrap(),
            files => {
                std::fs::create_dir(&input).unwrap();
                files.iter().for_each(|(name, b)| std::fs::write(input.join(name), b).unwrap());
            }
        }
        let result = quantize(&input, &output, &Options::default(), &mut |_| true);
        match result {
            Ok(_) => {
                let broken = ["container", "tensor-info"].contains(&&*case.category);
                assert!(!broken, "{}: {}", case.name, case.expect);
                std::fs::remove_file(&output).unwrap();
            }
            Err(e) => {
                assert!(
                    !case.must_load || case.name.ends_with(".safetensors"),
                    "{}: {e}",
                    case.name
                );
                refused += 1;
            }
        }
        assert!(folder.files().iter().all(|name| name == "in"), "{}", case.name);
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn written_metadata_gives_the_same_tokenizer() {
    let folder = Folder::new("tokenizer");
    let output = folder.join("out.gguf");
    let source = fixture("qwen3-mini/hf-packed-autobitlinear");
    run(&source, &output, Options::default()).unwrap();
    let got = Gguf::open(&output);
    let text = |name: &str| std::fs::read_to_string(source.join(name)).unwrap();
    let original = bitnet_rust::tokenizer::Tokenizer::from_hf(
        &text("tokenizer.json"),
        Some(&text("tokenizer_config.json")),
        Some(&text("generation_config.json")),
    )
    .unwrap();
    let tokenizer = bitnet_rust::tokenizer::Tokenizer::from_gguf(&got.metadata).unwrap();
    assert_eq!(tokenizer.eos_ids(), original.eos_ids());
    assert_eq!(tokenizer.bos(), original.bos());
    assert_eq!(tokenizer.add_bos(), original.add_bos());
    assert_eq!(tokenizer.chat_template().source(), original.chat_template().source());
    let sample = "Hello<|eot_id|> 12345 wörld\n\n  x";
    assert_eq!(tokenizer.encode(sample, true).unwrap(), original.encode(sample, true).unwrap());
    assert!(matches!(got.metadata.get("tokenizer.ggml.pre"), Some(Value::String(_))));
}

#[test]
fn the_program_reports_and_exits_as_it_should() {
    let folder = Folder::new("program");
    let output = folder.join("out.gguf");
    let program = |input: &Path, more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bitnet"));
        command.arg("quantize").arg(input).arg(&output).args(more);
        let done = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (done.status.code(), text(done.stdout), text(done.stderr))
    };
    let packed = fixture("bitnet2b4t-mini/hf-packed-offline");
    let (code, out, err) = program(&packed, &["--type", "tq1_0", "--embed", "q8_0", "--json"]);
    assert_eq!((code, &*err), (Some(0), ""));
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["output_bytes"], std::fs::metadata(&output).unwrap().len());
    assert_eq!(report["tensors"].as_array().unwrap().len(), 35);
    assert!(report["saved_against_f32"].as_f64().unwrap() > 0.9);
    let (code, out, _) = program(&packed, &["--tensors"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("blk.2.ffn_up.weight") && out.contains("% saved"), "{out}");
    let (code, out, err) = program(&ordinary(&folder), &[]);
    assert_eq!((code, &*out), (Some(1), ""));
    assert!(err.starts_with("error: ") && err.contains("--force"), "{err}");
    assert_eq!(program(&folder.join("absent"), &[]).0, Some(1));
    assert_eq!(program(&packed, &["--type", "q3"]).0, Some(2));
    assert_eq!(program(Path::new("default"), &[]).0, Some(2));
}
