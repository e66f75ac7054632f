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


class BitLinear(nn.Linear):
    """Linear layer without bias; wq is its weight matrix as this step uses it."""

    def __init__(self, d_in, d_out):
        super().__init__(d_in, d_out, bias=False)

    def forward(self, x, wq):
        return F.linear(x, wq.to(x.dtype))


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        xf = x.float()
        return (xf * torch.rsqrt(xf.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


def rope_tables(cfg, n, device):
    inv = cfg.rope_theta ** (-torch.arange(0, cfg.head_dim, 2, device=device).float() / cfg.head_dim)
    a = torch.arange(n, device=device).float()[:, None] * inv[None]
    a = torch.cat([a, a], dim=-1)
    return a.cos(), a.sin()


def rotate(x, cos, sin):
    """Half-split (NeoX) rotary embedding on [batch, heads, time, head_dim]."""
    x1, x2 = x.chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-x2, x1], dim=-1).float() * sin).to(x.dtype)


class Block(nn.Module):
    NAMES = ("q", "k", "v", "o", "gate", "up", "down")

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        d, hd = cfg.hidden, cfg.head_dim
        self.attn_norm = RMSNorm(d, cfg.eps)
        self.q = BitLinear(d, cfg.heads * hd)
        self.k = BitLinear(d, cfg.kv_heads * hd)
        self.v = BitLinear(d, cfg.kv_heads * hd)
        self.attn_sub_norm = RMSNorm(cfg.heads * hd, cfg.eps)
        self.o = BitLinear(cfg.heads * hd, d)
        self.ffn_norm = RMSNorm(d, cfg.eps)
        self.gate = BitLinear(d, cfg.ffn)
        self.up = BitLinear(d, cfg.ffn)
        self.ffn_sub_norm = RMSNorm(cfg.ffn, cfg.eps)
        self.down = BitLinear(cfg.ffn, d)

    def forward(self, x, cos, sin, cache=None):
        cfg = self.cfg
        tern = cfg.ternary and not getattr(self, "frozen", False)
        act = quantise_input if cfg.ternary else (lambda z: z)
        wq = [quantise_weight(getattr(self, n).weight) if tern else getattr(self, n).weight for n in self.NAMES]
        drop = cfg.dropout if self.training else 0.0
        b, t, _ = x.shape
        h = act(self.attn_norm(x))
        q = self.q(h, wq[0]).view(b, t, cfg.heads, cfg.head_dim).transpose(1, 2)
        k = self.k(h, wq[1]).view(b, t, cfg.kv_heads, cfg.head_dim).transpose(1, 2)
        v = self.v(h, wq[2]).view(b, t, cfg.kv_heads, cfg.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:  # generation: cache = dict(k, v)
            k = torch.cat([cache["k"], k], 2) if "k" in cache else k
            v = torch.cat([cache["v"], v], 2) if "v" in cache else v
            cache["k"], cache["v"] = k, v
        a = F.scaled_dot_product_attention(q, k, v, is_causal=t > 1, enable_gqa=True)
        a = a.transpose(1, 2).reshape(b, t, -1)
        a = self.o(act(self.attn_sub_norm(a)), wq[3])
        x = x + F.dropout(a, drop, self.training)
        h = act(self.ffn_norm(x))
        f = F.relu(self.gate(h, wq[4])).square() * self.up(h, wq[5])
        f = self.down(act(self.ffn_sub_norm(f)), wq[6])
        return x + F.dropout(f, drop, self.training)


class Model(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab, cfg.hidden)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.norm = RMSNorm(cfg.hidden, cfg.eps)
        for n, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)
        cos, sin = rope_tables(cfg, cfg.context, "cpu")
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def hidden(self, ids, caches=None, start=0):
        x = self.embed(ids)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if self.training:
            x = F.dropout(x, self.cfg.dropout)
        cos, sin = self.cos[start:start + ids.shape[1]], self.sin[start:start + ids.shape[1]]
        for i, blk in enumerate(self.blocks):
            x = blk(x, cos, sin) if caches is None else blk(x, cos, sin, caches[i])
        return self.norm(x)

    def forward(self, ids, caches=None, start=0):
        """Logits in float32; the head is the embedding."""
        h = self.hidden(ids, caches, start)
        return F.linear(h, self.embed.weight.to(h.dtype)).float()

    @torch.no_grad()
    def freeze_ternary(self):
        """Replace the master weights by their ternary values (inference, export checks)."""
        if self.cfg.ternary:
            for blk in self.blocks:
                for n in Block.NAMES:
                    w = getattr(blk, n).weight
                    t, s = ternarise(w)
                    w.copy_(t * s)
                blk.frozen = True
        return self
