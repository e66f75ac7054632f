"""BitNet b1.58 language model (the block of BitNet b1.58 2B-4T) for training.

Linear layers hold float master weights.  In every forward pass the weights are
rounded to {-1, 0, 1} times the mean of |w| of the matrix, and the inputs to
8-bit integers with one scale a token; gradients pass straight through both
roundings.  With ternary=False the same network runs in plain floats (the
teacher used for distillation).
"""
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Config:
    vocab: int = 4096
    hidden: int = 512
    layers: int = 10
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 64
    ffn: int = 1536
    context: int = 1024
    rope_theta: float = 10000.0
    eps: float = 1e-5
    dropout: float = 0.1
    ternary: bool = True

    dict = asdict


def absmean(w):
    """Scale of a ternary matrix: the mean of |w|."""
    return w.float().abs().mean().clamp(min=1e-5)


def ternarise(w):
    """Float matrix -> (values in {-1, 0, 1}, scale)."""
    s = absmean(w)
    return (w.float() / s).round().clamp(-1, 1), s


def quantise_weight(w):
    t, s = ternarise(w)
    return w + (t * s - w).detach()


def quantise_input(x):
    """int8 per token: s = 127 / max|x|, round half to even."""
    xf = x.float()
    s = 127.0 / xf.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)
    q = (xf * s).round().clamp(-128, 127) / s
    return (xf + (q - xf).detach()).to(x.dtype)


def rms_norm(x, weight, eps):
    xf = x.float()
    return (xf * torch.rsqrt(xf.pow(2).mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def rope_tables(cfg, n, device):
    inv = cfg.rope_theta ** (-torch.arange(0, cfg.head_dim, 2, device=device).float() / cfg.head_dim)
    a = torch.arange(n, device=device).float()[:, None] * inv[None]
    a = torch.cat([a, a], dim=-1)
    return a.cos(), a.sin()


def rotate(x, cos, sin):
    """Half-split (NeoX) rotary embedding on [batch, heads, time, head_dim]."""
    x1, x2 = x.chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-x2, x1], dim=-1).float() * sin).to(x.dtype)


LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


def block(cfg, p, x, cos, sin, drop=0.0, frozen=(), cache=None):
    """One transformer block; p = {name: tensor}; frozen: names of matrices that hold ternary values
    already.  A plain function, so that one compiled version serves all layers."""
    b, t, _ = x.shape
    act = quantise_input if cfg.ternary else (lambda z: z)

    def linear(name, z):
        w = p[name]
        if cfg.ternary and name not in frozen:
            w = quantise_weight(w)
        return F.linear(z, w.to(z.dtype))

    def norm(name, z):
        return rms_norm(z, p[name], cfg.eps)

    h = act(norm("attn_norm", x))
    q = linear("q", h).view(b, t, cfg.heads, cfg.head_dim).transpose(1, 2)
    k = linear("k", h).view(b, t, cfg.kv_heads, cfg.head_dim).transpose(1, 2)
    v = linear("v", h).view(b, t, cfg.kv_heads, cfg.head_dim).transpose(1, 2)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if cache is not None:  # generation: (keys, values, position of the next token)
        ck, cv, n = cache
        ck[:, :, n:n + t], cv[:, :, n:n + t] = k, v
        k, v = ck[:, :, :n + t], cv[:, :, :n + t]
    rep = cfg.heads // cfg.kv_heads
    k, v = (z[:, :, None].expand(-1, -1, rep, -1, -1).flatten(1, 2) for z in (k, v))
    a = F.scaled_dot_product_attention(q, k, v, is_causal=t > 1)
    a = a.transpose(1, 2).reshape(b, t, -1)
    a = linear("o", act(norm("attn_sub_norm", a)))
    x = x + F.dropout(a, drop, drop > 0)
    h = act(norm("ffn_norm", x))
    f = F.relu(linear("gate", h)).square() * linear("up", h)
    f = linear("down", act(norm("ffn_sub_norm", f)))
    return x + F.dropout(f, drop, drop > 0)


class Block(nn.Module):
    """The parameters of one block."""

    def __init__(self, cfg):
        super().__init__()
        d, qd, kd = cfg.hidden, cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
        shapes = {"q": (qd, d), "k": (kd, d), "v": (kd, d), "o": (d, qd),
                  "gate": (cfg.ffn, d), "up": (cfg.ffn, d), "down": (d, cfg.ffn)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) * 0.02))
        for name, dim in (("attn_norm", d), ("attn_sub_norm", qd), ("ffn_norm", d), ("ffn_sub_norm", cfg.ffn)):
            self.register_parameter(name, nn.Parameter(torch.ones(dim)))


class Model(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.dtype = torch.float32  # of the activations
        self.frozen = ()
        self.block_fn = block
        self.embed = nn.Embedding(cfg.vocab, cfg.hidden)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.norm = nn.Parameter(torch.ones(cfg.hidden))
        cos, sin = rope_tables(cfg, cfg.context, "cpu")
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def hidden(self, ids, caches=None, start=0):
        drop = self.cfg.dropout if self.training else 0.0
        x = F.dropout(self.embed(ids).to(self.dtype), drop, drop > 0)
        cos, sin = self.cos[start:start + ids.shape[1]], self.sin[start:start + ids.shape[1]]
        for i, blk in enumerate(self.blocks):
            cache = None if caches is None else (*caches[i], start)
            x = self.block_fn(self.cfg, dict(blk.named_parameters()), x, cos, sin, drop, self.frozen, cache)
        return rms_norm(x, self.norm, self.cfg.eps)

    def forward(self, ids, caches=None, start=0):
        """Logits in float32; the head is the embedding."""
        h = self.hidden(ids, caches, start)
        return F.linear(h, self.embed.weight.to(h.dtype)).float()

    def new_caches(self, batch, n):
        c = self.cfg
        shape = (batch, c.kv_heads, n, c.head_dim)
        dev = self.embed.weight.device
        return [(torch.zeros(shape, device=dev, dtype=self.dtype), torch.zeros(shape, device=dev, dtype=self.dtype))
                for _ in range(c.layers)]

    @torch.no_grad()
    def freeze(self):
        """Round everything as the exported files hold it: embedding and masters to bfloat16,
        then the matrices to ternary values times a bfloat16 scale."""
        for n, p in self.named_parameters():
            p.copy_(p.bfloat16().float())
            if self.cfg.ternary and n.split(".")[-1] in LINEARS:
                t, s = ternarise(p)
                p.copy_(t * s.bfloat16().float())
        self.frozen = LINEARS
        return self.eval()


@torch.no_grad()
def generate(model, prompts, max_new, temperature=0.7, top_k=40, seed=1, stop=(1, 2)):
    """Batch of prompts (lists of ids) -> list of new ids (without the stop token) and whether each ended.
    All rows run from position 0: those with longer prompts are fed theirs while others generate.
    Rows that have ended leave the batch now and then."""
    dev = model.embed.weight.device
    longest = max(map(len, prompts))
    total = min(model.cfg.context, longest + max_new)
    gen = torch.Generator(device=dev).manual_seed(seed)
    caches = model.new_caches(len(prompts), total)
    seqs, ended = [list(p) for p in prompts], [False] * len(prompts)
    rows = list(range(len(prompts)))  # rows still in the batch
    for pos in range(total - 1):
        ids = torch.tensor([[seqs[r][pos]] for r in rows], device=dev)
        logits = model(ids, caches, pos)[:, -1]
        if temperature <= 0:
            nxt = logits.argmax(-1)
        else:
            v, ix = logits.topk(top_k)
            pick = torch.multinomial(torch.softmax(v / temperature, -1), 1, generator=gen)
            nxt = ix.gather(1, pick)[:, 0]
        open_ = []
        for i, (r, t) in enumerate(zip(rows, nxt.tolist())):
            if len(seqs[r]) == pos + 1:  # past the prompt
                ended[r] |= t in stop or len(seqs[r]) - len(prompts[r]) >= max_new
                seqs[r].append(t)
            if not ended[r]:
                open_.append(i)
        if not open_:
            break
        if len(open_) < 0.8 * len(rows):
            keep = torch.tensor(open_, device=dev)
            caches = [(k[keep], v[keep]) for k, v in caches]
            rows = [rows[i] for i in open_]
    new = [s[len(p):] for s, p in zip(seqs, prompts)]
    cut = [next((i for i, t in enumerate(n) if t in stop), len(n)) for n in new]
    return [n[:c][:max_new] for n, c in zip(new, cut)], [c < len(n) for n, c in zip(new, cut)]
