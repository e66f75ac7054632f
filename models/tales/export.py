"""Checkpoint of train.py -> Hugging Face folders and GGUF.

    python export.py tales.pt tokenizer.json packed OUT_DIR     ternary weights, 2 bits each
    python export.py tales.pt tokenizer.json master OUT_DIR     bfloat16 master weights, in shards
    python export.py tales.pt tokenizer.json gguf OUT.gguf [q8_0|f16]
    python export.py tales.pt tokenizer.json check FILE.gguf    decoded file against the checkpoint: same logits

The checkpoint holds the masters in bfloat16; all exports ternarise these.
"""
import json
import os
import struct
import sys

import numpy as np
import torch
from safetensors.torch import save_file

import model as M
from data import CHAT_TEMPLATE

NAME = "tales"
DESCRIPTION = ("BitNet b1.58 storyteller of 33.6 M parameters, trained from nothing on public-domain fairy tales and "
               "children's books. Period style, no facts.")
HF = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
      "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj", "attn_norm": "input_layernorm",
      "ffn_norm": "post_attention_layernorm", "attn_sub_norm": "self_attn.attn_sub_norm",
      "ffn_sub_norm": "mlp.ffn_sub_norm"}
GGUF = {"attn_norm": "attn_norm", "ffn_norm": "ffn_norm", "attn_sub_norm": "attn_sub_norm",
        "ffn_sub_norm": "ffn_sub_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
        "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
F32, F16, Q8_0, I2_S = 0, 1, 8, 36


def ternary(w):
    """bfloat16 master -> int8 values, bfloat16 scale."""
    t, s = M.ternarise(w)
    return t.to(torch.int8), s.bfloat16()


# ---- Hugging Face ----------------------------------------------------------------------------

def hf_files(cfg, tokenizer, out, quantization):
    os.makedirs(out, exist_ok=True)
    config = {
        "architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2",
        "hidden_size": cfg.hidden, "intermediate_size": cfg.ffn, "max_position_embeddings": cfg.context,
        "num_attention_heads": cfg.heads, "num_hidden_layers": cfg.layers, "num_key_value_heads": cfg.kv_heads,
        "rms_norm_eps": cfg.eps, "rope_theta": cfg.rope_theta, "tie_word_embeddings": True, "vocab_size": cfg.vocab,
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 3, "torch_dtype": "bfloat16",
        "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear",
                                "quantization_mode": quantization}}
    tok_config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>",
                  "eos_token": "<|eot_id|>", "pad_token": "<|pad|>", "model_max_length": cfg.context,
                  "clean_up_tokenization_spaces": False, "chat_template": CHAT_TEMPLATE}
    generation = {"bos_token_id": 0, "eos_token_id": [1, 2], "do_sample": True, "temperature": 0.7, "top_k": 40}
    for name, content in (("config.json", config), ("tokenizer_config.json", tok_config),
                          ("generation_config.json", generation)):
        json.dump(content, open(os.path.join(out, name), "w"), indent=1)
    with open(os.path.join(out, "tokenizer.json"), "w") as f:
        json.dump(json.load(open(tokenizer)), f, ensure_ascii=False)


def hf_name(name):
    if name == "embed.weight":
        return "model.embed_tokens.weight"
    if name == "norm":
        return "model.norm.weight"
    _, i, part = name.split(".")
    return f"model.layers.{i}.{HF[part]}.weight"


def export_packed(cfg, state, tokenizer, out):
    hf_files(cfg, tokenizer, out, "offline")
    tensors = {}
    for name, w in state.items():
        if name.split(".")[-1] in M.LINEARS:
            t, s = ternary(w)
            q = (t + 1).to(torch.uint8).view(4, -1, t.shape[1])  # rows a quarter of the matrix apart
            tensors[hf_name(name)] = q[0] | q[1] << 2 | q[2] << 4 | q[3] << 6
            tensors[hf_name(name) + "_scale"] = s.view(1)
        else:
            tensors[hf_name(name)] = w.bfloat16()
    save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})


def export_master(cfg, state, tokenizer, out, limit=15 << 20):
    hf_files(cfg, tokenizer, out, "online")
    shards, size = [{}], 0
    for name, w in state.items():
        if size + w.numel() * 2 > limit:
            shards.append({})
            size = 0
        shards[-1][hf_name(name)] = w.bfloat16()
        size += w.numel() * 2
    index = {"metadata": {"total_size": sum(w.numel() * 2 for w in state.values())}, "weight_map": {}}
    for i, s in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(s, os.path.join(out, file), metadata={"format": "pt"})
        index["weight_map"].update({n: file for n in s})
    json.dump(index, open(os.path.join(out, "model.safetensors.index.json"), "w"), indent=1)


# ---- GGUF ------------------------------------------------------------------------------------

def pack_i2_s(t, scale):
    """Groups of 128 values -> 32 bytes, first 32 values in the top bits; then the f32 scale and padding."""
    c = (t.numpy().reshape(-1, 4, 32) + 1).astype(np.uint8)
    codes = c[:, 0] << 6 | c[:, 1] << 4 | c[:, 2] << 2 | c[:, 3]
    return codes.tobytes() + struct.pack("<f", float(scale)) + bytes(28)


def pack_q8_0(w):
    """Blocks of 32: f16 d = max|w| / 127, then 32 int8 (half away from zero, as the reference)."""
    x = w.float().numpy().reshape(-1, 32)
    d = np.abs(x).max(1, keepdims=True) / np.float32(127)
    inv = np.where(d > 0, 1 / np.where(d > 0, d, 1), 0).astype(np.float32)
    v = x * inv
    q = (np.sign(v) * np.floor(np.abs(v) + np.float32(0.5))).astype(np.int8)
    return np.concatenate([d.astype("<f2").view(np.uint8), q.view(np.uint8)], 1).tobytes()


def gguf_value(v):
    """-> (type, bytes) of a metadata value"""
    def text(s):
        b = s.encode()
        return struct.pack("<Q", len(b)) + b
    if isinstance(v, bool):
        return 7, struct.pack("<?", v)
    if isinstance(v, int):
        return 4, struct.pack("<I", v)
    if isinstance(v, float):
        return 6, struct.pack("<f", v)
    if isinstance(v, str):
        return 8, text(v)
    if isinstance(v[0], str):
        return 9, struct.pack("<IQ", 8, len(v)) + b"".join(map(text, v))
    return 9, struct.pack("<IQ", 5, len(v)) + np.array(v, "<i4").tobytes()


def export_gguf(cfg, state, tokenizer, out, embed="q8_0"):
    tj = json.load(open(tokenizer))
    tokens = [None] * cfg.vocab
    for s, i in tj["model"]["vocab"].items():
        tokens[i] = s
    for a in tj["added_tokens"]:
        tokens[a["id"]] = a["content"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in tj["model"]["merges"]]
    a = "bitnet-b1.58"
    meta = {
        "general.architecture": a, "general.name": NAME, "general.license": "cc0-1.0",
        "general.description": DESCRIPTION, f"{a}.vocab_size": cfg.vocab, f"{a}.context_length": cfg.context,
        f"{a}.embedding_length": cfg.hidden, f"{a}.block_count": cfg.layers, f"{a}.feed_forward_length": cfg.ffn,
        f"{a}.rope.dimension_count": cfg.head_dim, f"{a}.attention.head_count": cfg.heads,
        f"{a}.attention.head_count_kv": cfg.kv_heads, f"{a}.attention.layer_norm_rms_epsilon": cfg.eps,
        f"{a}.rope.freq_base": float(cfg.rope_theta), "general.file_type": 40,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if i < 4 else 1 for i in range(cfg.vocab)], "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.padding_token_id": 3,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.chat_template": CHAT_TEMPLATE,
        "general.quantization_version": 2}
    e = state["embed.weight"]
    tensors = [("token_embd.weight", e.shape, *((Q8_0, pack_q8_0(e)) if embed == "q8_0" else
                                                (F16, e.half().numpy().tobytes())))]
    for i in range(cfg.layers):
        for part, name in GGUF.items():
            w = state[f"blocks.{i}.{part}"]
            data = (I2_S, pack_i2_s(*ternary(w))) if part in M.LINEARS else (F32, w.float().numpy().tobytes())
            tensors.append((f"blk.{i}.{name}.weight", w.shape, *data))
    tensors.append(("output_norm.weight", state["norm"].shape, F32, state["norm"].float().numpy().tobytes()))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta))
    for k, v in meta.items():
        kind, b = gguf_value(v)
        head += struct.pack("<Q", len(k)) + k.encode() + struct.pack("<I", kind) + b
    body = b""
    for name, shape, kind, data in tensors:
        head += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
        head += b"".join(struct.pack("<Q", n) for n in reversed(shape)) + struct.pack("<IQ", kind, len(body))
        body += data + bytes(-len(data) % 32)
    open(out, "wb").write(head + bytes(-len(head) % 32) + body)
    print(out, os.path.getsize(out), "bytes")


def read_gguf(path):
    """Small independent reader: -> metadata, {name: float array}"""
    d = open(path, "rb").read()
    pos = 4

    def get(fmt):
        nonlocal pos
        v = struct.unpack_from("<" + fmt, d, pos)[0]
        pos += struct.calcsize("<" + fmt)
        return v

    def text():
        nonlocal pos
        n = get("Q")
        pos += n
        return d[pos - n:pos].decode()

    def value(t):
        if t == 8:
            return text()
        if t == 9:
            et, n = get("I"), get("Q")
            return [value(et) for _ in range(n)]
        return get({4: "I", 5: "i", 6: "f", 7: "?"}[t])

    assert d[:4] == b"GGUF" and get("I") == 3
    nt, nk = get("Q"), get("Q")
    meta = {}
    for _ in range(nk):
        k = text()
        meta[k] = value(get("I"))
    infos = []
    for _ in range(nt):
        name = text()
        ne = [get("Q") for _ in range(get("I"))]
        infos.append((name, ne, get("I"), get("Q")))
    base = pos + -pos % 32
    out = {}
    for name, ne, kind, off in infos:
        n, at = int(np.prod(ne)), base + off
        if kind == F32:
            x = np.frombuffer(d, "<f4", n, at)
        elif kind == F16:
            x = np.frombuffer(d, "<f2", n, at).astype(np.float32)
        elif kind == Q8_0:
            b = np.frombuffer(d, np.uint8, n // 32 * 34, at).reshape(-1, 34)
            x = b[:, :2].copy().view("<f2").astype(np.float32) * b[:, 2:].copy().view(np.int8)
        else:
            b = np.frombuffer(d, np.uint8, n // 4, at).reshape(-1, 1, 32)
            c = b >> np.array([6, 4, 2, 0], np.uint8)[None, :, None] & 3
            assert c.max() <= 2, name
            x = (c.astype(np.float32).reshape(-1) - 1) * struct.unpack_from("<f", d, at + n // 4)[0]
        out[name] = torch.from_numpy(np.array(x, dtype=np.float32)).view(*reversed(ne))
    return meta, out


def from_gguf(path):
    meta, t = read_gguf(path)
    g = {k.split(".", 2)[-1]: v for k, v in meta.items() if k.startswith("bitnet-b1.58.")}
    cfg = M.Config(vocab=g["vocab_size"], hidden=g["embedding_length"], layers=g["block_count"],
                   heads=g["attention.head_count"], kv_heads=g["attention.head_count_kv"],
                   head_dim=g["rope.dimension_count"], ffn=g["feed_forward_length"], context=g["context_length"],
                   rope_theta=g["rope.freq_base"])
    m = M.Model(cfg)
    with torch.no_grad():
        m.embed.weight.copy_(t["token_embd.weight"])
        m.norm.copy_(t["output_norm.weight"])
        for i, b in enumerate(m.blocks):
            for part, name in GGUF.items():
                getattr(b, part).copy_(t[f"blk.{i}.{name}.weight"])
    m.frozen = M.LINEARS
    return m.eval(), meta


def check(cfg, state, path):
    a = M.Model(cfg)
    a.load_state_dict({n: w.float() for n, w in state.items()})
    a.freeze()
    b, _ = from_gguf(path)
    for (n, x), (_, y) in zip(a.named_parameters(), b.named_parameters()):
        if n != "embed.weight":
            assert torch.equal(x, y), n
    print("all tensors but the embedding equal; embedding differs by at most",
          (a.embed.weight - b.embed.weight).abs().max().item())
    ids = torch.randint(4, cfg.vocab, (1, 200), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        x, y = a(ids), b(ids)
        a.embed.weight.copy_(b.embed.weight)
        z = a(ids)
    print("logits: std %.3f, difference rms %.5f (with the same embedding: max %.7f); argmax equal: %.1f %%" % (
        x.std(), (x - y).pow(2).mean().sqrt(), (z - y).abs().max(), 100 * (x.argmax(-1) == y.argmax(-1)).float().mean()))


def main():
    src, tokenizer, what, out, *more = sys.argv[1:]
    d = torch.load(src, map_location="cpu")
    cfg, state = M.Config(**d["config"]), d["state"]
    if what == "gguf":
        export_gguf(cfg, state, tokenizer, out, *more)
    elif what == "check":
        check(cfg, state, out)
    else:
        {"packed": export_packed, "master": export_master}[what](cfg, state, tokenizer, out)


if __name__ == "__main__":
    main()
