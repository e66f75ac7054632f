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


def block(cfg, p, x, cos, sin, drop=0.0, frozen=()):
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
    rep = cfg.heads // cfg.kv_heads
    k, v = (z[:, :, None].expand(-1, -1, rep, -1, -1).flatten(1, 2) for z in (k, v))
    a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
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

    def hidden(self, ids):
        drop = self.cfg.dropout if self.training else 0.0
        x = F.dropout(self.embed(ids).to(self.dtype), drop, drop > 0)
        cos, sin = self.cos[:ids.shape[1]], self.sin[:ids.shape[1]]
        for blk in self.blocks:
            x = self.block_fn(self.cfg, dict(blk.named_parameters()), x, cos, sin, drop, self.frozen)
        return rms_norm(x, self.norm, self.cfg.eps)

    def forward(self, ids):
        """Logits in float32; the head is the embedding."""
        h = self.hidden(ids)
        return F.linear(h, self.embed.weight.to(h.dtype)).float()

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
