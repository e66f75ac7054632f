"""Many tales at once: sampling with a cache of keys and values, on a GPU as CUDA graphs.

All rows are at the same position: a row reads its request while it lasts and then what was drawn.
A step has fixed shapes: so many rows, of two or three sizes in use at a time, and keys up to the next
multiple of 128, those to come being hidden.  Position, temperature and noise are tensors.  So a step is
recorded once for every shape and then replayed; on a CPU the same step just runs.

A row may be guided: the logits of its asked words are raised until they have been told.
"""
import json
import re
import time

import torch
import torch.nn.functional as F

import model as M

EOT, TOP_K = 2, 40
REACH = 7.0  # a word fits where its logit is at most so far below the largest
WORDS, WIDTH = 3, 8  # asked words of a row; tokens of a word, and one more
SIZES = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 1 / 16)


def pieces(path):
    """The bytes of every token, one character a byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    byte = {chr(b): chr(b) for b in printable} | {chr(256 + i): chr(b) for i, b in enumerate(rest)}
    spec = json.load(open(path, encoding="utf-8"))
    special = {t["id"] for t in spec["added_tokens"]}
    return {i: "" if i in special else "".join(byte[c] for c in s) for s, i in spec["model"]["vocab"].items()}


def judged(bytes_of, keys, answer):
    """-> (text, for every asked word the span of its first mention or None)"""
    text = "".join(bytes_of[t] for t in answer)
    found = [re.search(rf"\b{k}(s|es)?\b", text, re.I) for k in keys]
    return text, [m and m.span() for m in found]


class Teller:
    def __init__(self, model, rows, graphs=True):
        cfg, dev = model.cfg, model.embed.weight.device
        self.cfg, self.dev, self.dtype, self.rows = cfg, dev, model.dtype, rows
        self.graphs = {} if graphs and dev.type == "cuda" else None
        self.pool = torch.cuda.graph_pool_handle() if self.graphs is not None else None

        def normed(x, weight):
            return M.quantise_input(M.rms_norm(x, weight, cfg.eps))

        def gated(gate, up, weight):
            return normed(F.relu(gate).square() * up, weight)

        def attended(scores, later):
            return (scores.float() * cfg.head_dim ** -0.5).masked_fill(later, float("-inf")).softmax(-1).to(scores.dtype)

        self.parts = normed, gated, attended
        if dev.type == "cuda":
            self.parts = [torch.compile(f, dynamic=True) for f in self.parts]
        self.weights = [{n: torch.empty_like(w, dtype=self.dtype if n in M.LINEARS else None)
                         for n, w in blk.named_parameters()} for blk in model.blocks]
        self.emb = torch.empty_like(model.embed.weight, dtype=self.dtype)
        self.norm = torch.empty_like(model.norm)
        self.cos, self.sin = model.cos, model.sin
        # keys and values; zeros, since hidden positions count 0 times what is there
        self.cache = torch.zeros(cfg.layers, 2, rows, cfg.kv_heads, cfg.context, cfg.head_dim, dtype=self.dtype, device=dev)
        self.t = torch.zeros(1, dtype=torch.long, device=dev)
        self.span = torch.arange(cfg.context, device=dev)
        self.noise = torch.ones(rows, TOP_K, device=dev)

        def ints(*shape):
            return torch.zeros(rows, *shape, dtype=torch.long, device=dev)
        self.out, self.length, self.who, self.ended = ints(cfg.context), ints(), ints(), ints().bool()
        # Every asked word in two spellings, small and capital: its tokens, how many, how many of them were
        # just drawn (what is not there: -1); whether it has been told; what is added to the logits.
        self.words, self.size, self.at = ints(2 * WORDS, WIDTH), ints(2 * WORDS), ints(2 * WORDS)
        self.told, self.urge, self.temperature = ints(WORDS).bool(), ints().float(), ints().float()
        self.state = [self.out, self.length, self.who, self.ended, self.words, self.size, self.at, self.told, self.urge,
                      self.temperature]

    @torch.no_grad()
    def load(self, model):
        for mine, blk in zip(self.weights, model.blocks):
            for name, w in blk.named_parameters():
                if name in M.LINEARS:
                    t, s = M.ternarise(w)
                    w = t * s
                mine[name].copy_(w)
        self.emb.copy_(model.embed.weight)
        self.norm.copy_(model.norm)

    def step(self, m, n):
        """The next token of the first m rows, which are at a position below n."""
        cfg, t, out = self.cfg, self.t, self.out[:m]
        normed, gated, attended = self.parts
        x = F.embedding(out.index_select(1, t)[:, 0], self.emb)
        cos, sin = self.cos.index_select(0, t), self.sin.index_select(0, t)
        later = self.span[:n] > t
        for p, (keys, values) in zip(self.weights, self.cache[:, :, :m]):
            h = normed(x, p["attn_norm"])
            q, k, v = (F.linear(h, p[name]).view(m, -1, 1, cfg.head_dim) for name in "qkv")
            keys.index_copy_(2, t, M.rotate(k, cos, sin))
            values.index_copy_(2, t, v)
            q = M.rotate(q, cos, sin).view(m, cfg.kv_heads, -1, cfg.head_dim)  # queries of a group: rows of one matrix
            weights = attended(q @ keys[:, :, :n].mT, later)
            h = (weights @ values[:, :, :n]).reshape(m, -1)
            x = x + F.linear(normed(h, p["attn_sub_norm"]), p["o"])
            h = normed(x, p["ffn_norm"])
            h = gated(F.linear(h, p["gate"]), F.linear(h, p["up"]), p["ffn_sub_norm"])
            x = x + F.linear(h, p["down"])
        z = F.linear(M.rms_norm(x, self.norm, cfg.eps), self.emb).float()

        words, at, told = self.words[:m], self.at[:m], self.told[:m]
        due = words.gather(2, at[..., None])[..., 0]
        urge = self.urge[:m, None] * (1 + 2 * (at > 0))  # a word that has begun is finished
        place = due.clamp(min=0)
        fits = (z.gather(1, place) > z.amax(-1, keepdim=True) - REACH) | (at > 0)
        z.scatter_add_(1, place, urge.masked_fill(told.repeat_interleave(2, 1) | (due < 0) | ~fits, 0.0))
        best, ids = (z / self.temperature[:m, None]).topk(TOP_K)
        drawn = ids.gather(1, (best - self.noise[:m].log()).argmax(-1, keepdim=True))

        free, ended = (t + 1 >= self.length[:m])[:, None], self.ended[:m, None]
        given = out.index_select(1, t + 1)
        out.index_copy_(1, t + 1, torch.where(free, drawn, given).masked_fill(ended, EOT))
        ended |= free & (drawn <= EOT)
        at.copy_(torch.where(free & (drawn == due), at + 1, (free & (drawn == words[..., 0])).long()))
        whole = at == self.size[:m]
        told |= whole.view(m, WORDS, 2).any(-1)
        at.masked_fill_(whole, 0)
        t += 1

    def advance(self, m, n):
        self.noise[:m].exponential_()
        if self.graphs is None:
            return self.step(m, n)
        if (m, n) not in self.graphs:
            kept = [self.t, *self.state]
            saved = [z.clone() for z in kept]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self.step(m, n)  # compiles, and lets the libraries choose
            torch.cuda.current_stream().wait_stream(side)
            for z, old in zip(kept, saved):
                z.copy_(old)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                self.step(m, n)
            self.graphs[m, n] = graph
        self.graphs[m, n].replay()

    def sizes(self):
        return sorted({max(1, int(self.rows * s)) for s in SIZES})

    @torch.no_grad()
    def tell(self, heads, temperatures, limit, deadline, guides=None):
        """Answers to requests: [(tokens, whether it ended)].

        limit: of the tokens of a request with its answer; guides: for every request (urge, [[tokens of a word
        in one spelling, in another], ...])."""
        r = self.rows
        if len(heads) > r:
            some = self.tell(heads[:r], temperatures[:r], limit, deadline, guides and guides[:r])
            return some + self.tell(heads[r:], temperatures[r:], limit, deadline, guides and guides[r:])
        count = len(heads)
        m = next(s for s in self.sizes() if s >= count)
        self.place(heads, temperatures, guides, m)
        self.t.zero_()
        result, ends = self.out[:count].clone(), torch.zeros(count, dtype=torch.bool, device=self.dev)

        def collect():
            mine = self.who[:m] >= 0
            result[self.who[:m][mine]], ends[self.who[:m][mine]] = self.out[:m][mine], self.ended[:m][mine]

        for t in range(limit - 1):
            if t % 16 == 15:
                left = (~self.ended[:m]).nonzero()[:, 0]
                if len(left) == 0 or time.time() > deadline:
                    break
                fewer = next(s for s in self.sizes() if s >= len(left))
                if fewer < m:  # rows that have ended go
                    collect()
                    for z in self.state:
                        z[:len(left)] = z[left]
                    for layer in self.cache:
                        for z in layer:
                            z[:len(left)] = z[left]
                    self.who[len(left):fewer], self.ended[len(left):fewer] = -1, True
                    m = fewer
            self.advance(m, min(-(t + 1) // 128 * -128, self.cfg.context))
        collect()
        tales = []
        for row, h, end in zip(result.tolist(), heads, ends.tolist()):
            answer = row[len(h):limit]
            stop = next((i for i, token in enumerate(answer) if token <= EOT), len(answer))
            tales.append((answer[:stop], end))
        return tales

    def place(self, heads, temperatures, guides, m):
        count = len(heads)
        out = torch.full((m, self.cfg.context), EOT)
        words, size = torch.full((m, 2 * WORDS, WIDTH), -1), torch.full((m, 2 * WORDS), -1)
        told, urge = torch.ones(m, WORDS, dtype=torch.bool), torch.zeros(m)
        for i, h in enumerate(heads):
            out[i, :len(h)] = torch.tensor(h)
            if guides:
                urge[i] = guides[i][0]
                for j, spellings in enumerate(guides[i][1][:WORDS]):
                    for k, ids in enumerate(spellings):
                        if len(ids) < WIDTH:
                            words[i, 2 * j + k, :len(ids)] = torch.tensor(ids)
                            size[i, 2 * j + k], told[i, j] = len(ids), False
        lengths = torch.tensor([len(h) for h in heads] + [1] * (m - count))
        who = torch.cat([torch.arange(count), torch.full((m - count,), -1)])
        values = (out, lengths, who, who < 0, words, size, torch.zeros_like(size), told, urge,
                  torch.tensor([*temperatures, *[1.0] * (m - count)]))
        for z, value in zip(self.state, values):
            z[:m] = value.to(self.dev)
