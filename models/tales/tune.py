"""Second stage: teach the model to use the words of a request, and to end its tales.

    python tune.py data CORPUS_DIR DATA_DIR tales.pt [--passes 6]      -> DATA_DIR/{requests.bin,asks.json}
    python tune.py train tales.pt DATA_DIR TUNED.pt [--seconds 250]    one H100

The first stage has read requests, but the few tokens that depend on a request
weigh little in its loss (it has read the books thirty times: it remembers what
comes), and few of its tales end within the context.  Here every answer is short
(the beginning and the end of a tale, or a scene) and ends, the asked words occur
early in it, and their first mentions are weighted up.  Of the asked nouns 40 %
are replaced by related ones, in the request and in the tale: then only the
request can tell what comes.  Rows of plain text keep what was learnt: their
targets are the predictions of the first stage.

practise.py goes on from there.  No request holds a pair of words of the evaluation.
"""
import argparse
import json
import os
import random
import re
import time

import numpy as np
import torch
import torch.nn.functional as F

import model as M
from evaluate import PAIRS, pair_request
from train import SKIP, Data, Muon, evaluate, restore, save

FIRST = 0x4000  # bit of a token that begins or continues the first mention of an asked word
AGAIN = 0x2000  # bit of a token to be unlearnt: it repeats a phrase (practise.py)
BOS, EOT = 0, 2


# ---- data ------------------------------------------------------------------------------------

def relatives(state, tok, nouns, count=24):
    """{noun: the nouns nearest to it in the embedding that take the same article}"""
    words = [w for w in nouns.article if nouns.article[w] and nouns.docs[w] >= 25]
    ids = [tok.encode(" " + w, add_special_tokens=False).ids for w in words]
    words, ids = zip(*((w, i[0]) for w, i in zip(words, ids) if len(i) == 1))
    e = F.normalize(state["embed.weight"][torch.tensor(ids)].float(), dim=-1)
    near = {}
    for w, order in zip(words, (e @ e.T).argsort(-1, descending=True).tolist()):
        same = [words[j] for j in order if words[j] != w and nouns.article[words[j]] == nouns.article[w]]
        near[w] = [x for x in same if not x.startswith(w[:4]) and not w.startswith(x[:4])][:count]
    return near


def replaced(text, old, new):
    """`old` -> `new`, also as a plural and with a capital."""
    def sub(m):
        return (new.capitalize() if m[1][0].isupper() else new) + (m[2] and "s")
    return re.sub(rf"\b({old})(s|es|)\b", sub, text, flags=re.I)


def answers(rng, paras, lens):
    """Texts of 60 to 900 tokens from a tale: (text, whether it is a tale with an end)."""
    if sum(lens) <= 800:
        yield "\n\n".join(paras), True
        yield "\n\n".join(paras), True
        return
    head, n, want = 0, 0, rng.choice([100, 150, 200, 300, 400])
    while head < len(paras) and n < want and n + lens[head] < 500:
        n += lens[head]
        head += 1
    tail, n, want = len(paras), 0, rng.choice([80, 120, 200, 300])
    while tail > head and n < want and n + lens[tail - 1] < 400:
        tail -= 1
        n += lens[tail]
    if head and tail < len(paras):
        yield "\n\n".join(paras[:head] + paras[tail:]), True
    start, n, want = rng.randrange(len(paras)), 0, rng.choice([100, 200, 300, 400])
    end = start
    while end < len(paras) and n < want and n + lens[end] < 700:
        n += lens[end]
        end += 1
    if n >= 60:
        yield "\n\n".join(paras[start:end]), False


def asked_in_evaluation(keys):
    return any(set(pair.split()) <= set(keys) for pair in PAIRS.split("|"))


def head(tok, request):
    """The tokens before an answer."""
    ids = [tok.encode(s, add_special_tokens=False).ids for s in ("User: " + request, "Assistant: ")]
    return [BOS, *ids[0], EOT, *ids[1]]


def sample(ask, answer):
    return [BOS] + [t | SKIP for t in ask[1:]] + answer + [EOT]


def request_pass(rng, tok, nouns, near, tales, swapped, early):
    from data import BOTH, PLAIN, SCENE, STORY, TITLED, phrase
    out = []
    for title, paras, lens in tales:
        for text, whole in answers(rng, paras, lens):
            found = nouns.salient(text[:max(500, int(len(text) * early))], 10)
            if not found:
                continue
            keys = rng.sample(found, min(rng.choice([1, 2, 2, 2, 2, 2, 3, 3]), len(found)))
            for i, k in enumerate(keys):
                if k in near and rng.random() < swapped:
                    new = rng.choice(near[k])
                    if not re.search(rf"\b{new}", text, re.I):
                        text, keys[i] = replaced(text, k, new), new
            if asked_in_evaluation(keys):
                continue
            kind, r = (STORY if whole else SCENE), rng.random()
            if r < 0.05:
                kind, keys = PLAIN, []
            elif whole and title and r < 0.15:
                kind = rng.choice([TITLED, BOTH])
                keys = keys if kind is BOTH else []
            elif not whole and r < 0.5:  # most of what users ask is called a story
                kind = STORY
            request = phrase(rng, nouns, kind, keys, title)
            body = tok.encode(text, add_special_tokens=False)
            marks = [0] * len(body.ids)
            for k in keys:
                if m := re.search(rf"\b{k}(s|es)?\b", text, re.I):
                    for i, (a, b) in enumerate(body.offsets):
                        if a < m.end() and b > m.start():
                            marks[i] = FIRST
            ask = head(tok, request)
            if len(ask) + len(body.ids) < 1024:
                out.append(sample(ask, [t | m for t, m in zip(body.ids, marks)]))
    rng.shuffle(out)
    return out


def practice(rng, nouns, near, count):
    """(asked words, request): nouns that go together or are far apart, never a pair of the evaluation."""
    from data import STORY, phrase
    pool = [w for w in nouns.article if nouns.docs[w] >= 25]
    weight = [nouns.docs[w] ** 0.5 for w in pool]
    while count:
        keys = rng.choices(pool, weight)
        for _ in range(rng.choice([0, 1, 1, 1, 1, 1, 2])):
            related = near.get(keys[0], ())
            keys.append(rng.choice(related) if related and rng.random() < 0.4 else rng.choices(pool, weight)[0])
        stems = {k[:4] for k in keys}
        if len(stems) == len(keys) and not asked_in_evaluation(keys):
            count -= 1
            yield keys, phrase(rng, nouns, STORY, keys)


def make_data(a):
    from tokenizers import Tokenizer

    from data import Nouns, pack, read_tales, split_title
    tok = Tokenizer.from_file(os.path.join(a.data, "tokenizer.json"))
    corpus = read_tales(os.path.join(a.corpus, "train.txt.xz"))
    nouns = Nouns(corpus)
    near = relatives(torch.load(a.checkpoint, map_location="cpu")["state"], tok, nouns)
    tales = []
    for tale in corpus:
        title, body = split_title(tale)
        paras = body.split("\n\n")
        tales.append((title, paras, [len(e.ids) + 1 for e in tok.encode_batch(paras, add_special_tokens=False)]))
    rng = random.Random(99)
    windows = []
    for i in range(a.passes):
        samples = request_pass(rng, tok, nouns, near, tales, a.swapped, a.early)
        windows.append(pack(samples))
        tokens = sum(map(len, samples))
        print(f"pass {i}: {len(samples)} samples of {tokens / len(samples):.0f} tokens, {len(windows[-1])} windows",
              flush=True)
    np.concatenate(windows).tofile(os.path.join(a.data, "requests.bin"))
    asks = [(keys, head(tok, request)) for keys, request in practice(rng, nouns, near, a.asks)]
    pairs = [(p.split(), pair_request(p)) for p in PAIRS.split("|")]
    books = [(p["keys"], p["request"]) for p in json.load(open(os.path.join(a.data, "meta.json")))["prompts"]]
    held = {name: [(keys, head(tok, request)) for keys, request in cases]
            for name, cases in (("common", pairs), ("validation", books))}
    json.dump({"practice": asks, **held}, open(os.path.join(a.data, "asks.json"), "w"))


# ---- training --------------------------------------------------------------------------------

def request_loss(h, emb, y, weight):
    """Cross entropy; where the weight is negative, -log(1 - p): the token is unlearnt."""
    z = F.linear(h, emb.to(h.dtype)).float()
    ce = torch.logsumexp(z, -1) - z.gather(1, y[:, None])[:, 0]
    not_it = -(1.0001 - torch.exp(-ce)).log()
    return (torch.where(weight < 0, not_it, ce) * weight.abs()).sum() / weight.abs().sum().clamp(min=1)


def plain_loss(h, emb, target):
    """KL divergence from the first stage, up to a constant."""
    z = F.log_softmax(F.linear(h, emb.to(h.dtype)).float(), -1)
    return -(target.float() * z).sum(-1).mean()


class Requests:
    """Windows of requests: inputs, targets, weights of the targets."""

    def __init__(self, windows, device, first, end):
        self.windows, self.device, self.first, self.end = windows, device, first, end
        self.order, self.at = None, 0

    def rows(self, rows):
        w = self.windows[rows].long()
        ids = w & (AGAIN - 1)
        x, y, flags = ids[:, :-1], ids[:, 1:], w[:, 1:]
        weight = torch.ones(y.shape, device=self.device)
        weight[(flags & FIRST) > 0] = self.first
        weight[y == EOT] = self.end
        weight[(flags & AGAIN) > 0] = -1.0
        weight[((flags & SKIP) > 0) | (y == BOS)] = 0.0
        return x, y, weight

    def batch(self, n):
        if self.order is None or self.at + n > len(self.order):
            self.order, self.at = torch.randperm(len(self.windows), device=self.device), 0
        self.at += n
        return self.rows(self.order[self.at - n:self.at])


@torch.no_grad()
def probe(model, held, n):
    """Nats on windows that are not trained on: of all tokens, of first mentions, of ends."""
    model.eval()
    sums = torch.zeros(3, 2, dtype=torch.float64)
    for i in range(0, n, 8):
        x, y, w = held.rows(torch.arange(i, min(n, i + 8), device=held.device))
        ce = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
        for j, pick in enumerate((w > 0, (w == held.first) & (y != EOT), (y == EOT) & (w > 0))):
            sums[j] += torch.tensor([ce[pick].sum().item(), pick.sum().item()])
    model.train()
    return {k: round((a / max(b, 1)).item(), 4) for k, (a, b) in zip(("all", "first_mention", "end"), sums)}


class Tuner:
    """What both trainings share: the model, the first stage, their optimisers, a learning rate that falls
    with the share of the budget that is spent, and a log."""

    def __init__(self, a, start_from, first_stage):
        self.a, self.begin, self.log = a, time.time(), []
        torch.set_float32_matmul_precision("high")
        torch._dynamo.config.recompile_limit = 64
        torch.manual_seed(11)
        self.cuda = torch.cuda.is_available()
        self.device = "cuda" if self.cuda else "cpu"
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.data = Data(a.data, self.device, "requests.bin")
        windows = self.data.chat
        self.held = Requests(windows[:64], self.device, a.first, a.end)
        self.requests = Requests(windows[64:], self.device, a.first, a.end)
        self.model, self.stage1 = restore(start_from, self.device), restore(first_stage, self.device)
        self.model.dtype = self.stage1.dtype = self.dtype
        self.model.cfg.dropout = a.dropout
        self.stage1.freeze()
        named = list(self.model.named_parameters())
        self.other = [p for n, p in named if n.split(".")[-1] not in M.LINEARS]
        self.muon = Muon([p for n, p in named if n.split(".")[-1] in M.LINEARS])
        self.adam = torch.optim.AdamW(self.other, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
        self.block, self.losses = M.block, [request_loss, plain_loss]
        if self.cuda:
            self.block = torch.compile(M.block, dynamic=False)
            self.losses = [torch.compile(f, dynamic=False) for f in self.losses]
        self.stage1.block_fn = self.block
        self.n_plain = max(1, round(a.rows * a.plain))
        self.sums, self.steps = torch.zeros(2, device=self.device), 0
        self.model.train()
        self.backward(*self.requests.batch(a.rows - self.n_plain))  # compile, outside the schedule
        self.model.zero_grad(set_to_none=True)
        self.sums.zero_()
        print(f"ready after {self.seconds():.0f} s, {len(windows)} windows of requests", flush=True)

    def seconds(self):
        return time.time() - self.begin

    def backward(self, x, y, w):
        """Gradients of one batch: these requests and rows of plain text."""
        px, _, _ = self.data.batch(self.n_plain, 0, self.model.cfg.context)
        with torch.no_grad():
            target = torch.softmax(self.stage1(px), -1).flatten(0, 1).to(self.dtype)
        self.model.block_fn = self.block
        h = self.model.hidden(torch.cat([x, px]))
        self.model.block_fn = M.block
        emb = self.model.embed.weight
        asked = self.losses[0](h[:len(x)].flatten(0, 1), emb, y.flatten(), w.flatten())
        plain = self.losses[1](h[len(x):].flatten(0, 1), emb, target)
        ((1 - self.a.plain) * asked + self.a.plain * plain).backward()
        self.sums += torch.stack([asked.detach(), plain.detach()])

    def step(self, done, x, y, w):
        scale = min(1.0, (done + 1e-3) / 0.03) * (1 - 0.99 * done)
        self.backward(x, y, w)
        torch.nn.utils.clip_grad_norm_(self.other, 1.0)
        self.muon.step(self.a.lr * scale, 0.0)
        for g in self.adam.param_groups:
            g["lr"] = self.a.lr_embed * scale
        self.adam.step()
        self.model.zero_grad(set_to_none=True)
        self.steps += 1
        if self.cuda and self.steps % 8 == 0:
            torch.cuda.synchronize()

    def report(self, done, full=False, **more):
        steps = self.steps - (self.log[-1]["step"] if self.log else 0)
        valid, count = evaluate(self.model, self.data, self.data.valid, self.model.cfg.context,
                                limit=None if full and self.cuda else (48 if self.cuda else 2), batch=8)
        row = dict(step=self.steps, share=round(done, 3), valid=round(valid, 4),
                   loss=[round(s / max(1, steps), 4) for s in self.sums.tolist()],
                   **probe(self.model, self.held, 64 if self.cuda else 2), **more)
        if full:
            row["bits_per_char"] = round(valid * count / np.log(2) / self.data.meta["valid_chars"], 4)
        row["seconds"] = round(self.seconds(), 1)
        self.sums.zero_()
        self.log.append(row)
        print(json.dumps(row), flush=True)
        json.dump(self.log, open(self.a.out + ".json", "w"), indent=1)
        return row


def train(a):
    t = Tuner(a, a.checkpoint, a.checkpoint)
    t.report(0.0)
    start, next_report = t.seconds(), 1
    while True:
        done = t.steps / a.steps if a.steps else (t.seconds() - start) / max(a.seconds - start, 1e-3)
        if done >= 1:
            break
        if done * 8 >= next_report:
            t.report(done)
            next_report += 1
        t.step(done, *t.requests.batch(a.rows - t.n_plain))
    save(t.model, a.out)
    t.report(1.0, full=True)


def options(parser, seconds=250.0, lr=3e-3, lr_embed=5e-4):
    """What both trainings can be told."""
    for name, value in (("seconds", seconds), ("lr", lr), ("lr-embed", lr_embed), ("dropout", 0.1), ("plain", 1 / 3),
                        ("first", 6.0), ("end", 2.0)):
        parser.add_argument("--" + name, type=float, default=value)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--steps", type=int, default=0, help="instead of --seconds, to try things out")


def main():
    ap = argparse.ArgumentParser()
    stages = ap.add_subparsers(required=True)
    d = stages.add_parser("data")
    for name in ("corpus", "data", "checkpoint"):
        d.add_argument(name)
    d.add_argument("--passes", type=int, default=6)
    d.add_argument("--swapped", type=float, default=0.4, help="share of the asked nouns that are replaced")
    d.add_argument("--early", type=float, default=0.4, help="asked words are taken from this share of an answer")
    d.add_argument("--asks", type=int, default=20000, help="requests without answers, to practise on")
    d.set_defaults(run=make_data)
    t = stages.add_parser("train")
    for name in ("checkpoint", "data", "out"):
        t.add_argument(name)
    options(t)
    t.set_defaults(run=train)
    a = ap.parse_args()
    a.run(a)


if __name__ == "__main__":
    main()
