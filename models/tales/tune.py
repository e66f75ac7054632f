"""Second stage: teach the model to use the words of a request, and to end its tales.

    python tune.py data CORPUS_DIR DATA_DIR tales.pt [--passes 6]      -> DATA_DIR/requests.bin
    python tune.py train tales.pt DATA_DIR OUT.pt [--seconds 250]      one H100

The first stage has read requests, but the few tokens that depend on a request
weigh little in its loss (it has read the books thirty times: it remembers what
comes), and few of its tales end within the context.  Here every answer is short
(the beginning and the end of a tale, or a scene) and ends, the asked words occur
early in it, and their first mentions are weighted up.  Of the asked nouns 40 %
are replaced by related ones, in the request and in the tale: then only the
request can tell what comes.  Rows of plain text keep what was learnt: their
targets are the predictions of the first stage.
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
from train import SKIP, Data, Muon, evaluate, restore, save

FIRST = 0x4000  # bit of a token that begins or continues the first mention of an asked word
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


def request_pass(rng, tok, nouns, near, tales):
    from data import BOTH, PLAIN, SCENE, STORY, TITLED, phrase
    out = []
    for title, paras, lens in tales:
        for text, whole in answers(rng, paras, lens):
            early = text[:max(500, len(text) * 2 // 5)]
            found = nouns.salient(early, 10)
            if not found:
                continue
            keys = rng.sample(found, min(rng.choice([1, 2, 2, 2, 2, 2, 3, 3]), len(found)))
            for i, k in enumerate(keys):
                if k in near and rng.random() < 0.4:
                    new = rng.choice(near[k])
                    if not re.search(rf"\b{new}", text, re.I):
                        text, keys[i] = replaced(text, k, new), new
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
            head = [BOS] + [t | SKIP for s in ("User: " + request, "Assistant: ")
                            for t in tok.encode(s, add_special_tokens=False).ids + [EOT] * (s[0] == "U")]
            if len(head) + len(body.ids) < 1024:
                out.append(head + [t | m for t, m in zip(body.ids, marks)] + [EOT])
    rng.shuffle(out)
    return out


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
        samples = request_pass(rng, tok, nouns, near, tales)
        windows.append(pack(samples))
        tokens = sum(map(len, samples))
        print(f"pass {i}: {len(samples)} samples of {tokens / len(samples):.0f} tokens, {len(windows[-1])} windows",
              flush=True)
    np.concatenate(windows).tofile(os.path.join(a.data, "requests.bin"))
    print({w: near.get(w) for w in ("fox", "crow", "ship")})


# ---- training --------------------------------------------------------------------------------

def request_loss(h, emb, y, weight):
    z = F.linear(h, emb.to(h.dtype)).float()
    ce = torch.logsumexp(z, -1) - z.gather(1, y[:, None])[:, 0]
    return (ce * weight).sum() / weight.sum().clamp(min=1)


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
        ids = w & (FIRST - 1)
        x, y, flags = ids[:, :-1], ids[:, 1:], w[:, 1:]
        weight = torch.ones(y.shape, device=self.device)
        weight[(flags & FIRST) > 0] = self.first
        weight[y == EOT] = self.end
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


def train(a):
    begin = time.time()
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(11)
    data = Data(a.data, device, "requests.bin")
    windows = data.chat
    held = Requests(windows[:64], device, a.first, a.end)
    requests = Requests(windows[64:], device, a.first, a.end)
    model, stage1 = restore(a.checkpoint, device), restore(a.checkpoint, device)
    model.dtype = stage1.dtype = dtype
    model.cfg.dropout = a.dropout
    stage1.freeze()
    ctx = model.cfg.context
    mats = [p for n, p in model.named_parameters() if n.split(".")[-1] in M.LINEARS]
    other = [p for n, p in model.named_parameters() if n.split(".")[-1] not in M.LINEARS]
    muon = Muon(mats)
    adam = torch.optim.AdamW(other, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    if device == "cuda":
        model.block_fn = stage1.block_fn = torch.compile(M.block, dynamic=False)
        losses = [torch.compile(f, dynamic=False) for f in (request_loss, plain_loss)]
    else:
        losses = [request_loss, plain_loss]
    n_plain = max(1, round(a.rows * a.plain))

    def forward():
        x, y, w = requests.batch(a.rows - n_plain)
        px, _, _ = data.batch(n_plain, 0, ctx)
        with torch.no_grad():
            target = torch.softmax(stage1(px), -1).flatten(0, 1).to(dtype)
        h = model.hidden(torch.cat([x, px]))
        cut = a.rows - n_plain
        emb = model.embed.weight
        asked = losses[0](h[:cut].flatten(0, 1), emb, y.flatten(), w.flatten())
        plain = losses[1](h[cut:].flatten(0, 1), emb, target)
        return asked, plain

    log = []

    def report(step, share, sums, full=False):
        compiled, model.block_fn = model.block_fn, M.block
        valid, count = evaluate(model, data, data.valid, ctx, limit=None if full else (48 if device == "cuda" else 2), batch=8)
        if full:
            data.meta["bits_per_char"] = valid * count / np.log(2) / data.meta["valid_chars"]
        row = dict(step=step, share=round(share, 3), seconds=round(time.time() - begin, 1), valid=round(valid, 4),
                   loss=[round(s / max(1, step - (log[-1]["step"] if log else 0)), 4) for s in sums],
                   **probe(model, held, 64 if device == "cuda" else 2))
        if full:
            row["bits_per_char"] = round(data.meta["bits_per_char"], 4)
        log.append(row)
        print(json.dumps(row), flush=True)
        model.block_fn = compiled

    model.train()
    sum(forward()).backward()  # compile, outside the schedule
    model.zero_grad(set_to_none=True)
    print(f"ready after {time.time() - begin:.0f} s, {len(windows)} windows of requests", flush=True)
    report(0, 0.0, [0.0, 0.0])
    start = time.time()
    budget = max(a.seconds - (start - begin), 1e-3)
    step, sums, next_report = 0, torch.zeros(2, device=device), 1
    while True:
        done = (time.time() - start) / budget
        if a.steps:
            done = step / a.steps
        if done >= 1:
            break
        if done * 8 >= next_report:
            report(step, done, sums.tolist())
            sums, next_report = torch.zeros(2, device=device), next_report + 1
        scale = min(1.0, (done + 1e-3) / 0.03) * (1 - 0.99 * done)
        asked, plain = forward()
        ((1 - a.plain) * asked + a.plain * plain).backward()
        torch.nn.utils.clip_grad_norm_(other, 1.0)
        muon.step(a.lr * scale, 0.0)
        for g in adam.param_groups:
            g["lr"] = a.lr_embed * scale
        adam.step()
        model.zero_grad(set_to_none=True)
        sums += torch.stack([asked.detach(), plain.detach()])
        step += 1
        if device == "cuda" and step % 8 == 0:
            torch.cuda.synchronize()
    save(model, a.out)
    report(step, 1.0, sums.tolist(), full=device == "cuda")
    json.dump(log, open(a.out + ".json", "w"), indent=1)


def main():
    ap = argparse.ArgumentParser()
    stages = ap.add_subparsers(required=True)
    d = stages.add_parser("data")
    for name in ("corpus", "data", "checkpoint"):
        d.add_argument(name)
    d.add_argument("--passes", type=int, default=6)
    d.set_defaults(run=make_data)
    t = stages.add_parser("train")
    for name in ("checkpoint", "data", "out"):
        t.add_argument(name)
    for name, value in (("seconds", 250.0), ("lr", 3e-3), ("lr-embed", 5e-4), ("dropout", 0.1), ("plain", 1 / 3),
                        ("first", 6.0), ("end", 2.0)):
        t.add_argument("--" + name, type=float, default=value)
    t.add_argument("--rows", type=int, default=48)
    t.add_argument("--steps", type=int, default=0, help="instead of --seconds, to try things out")
    t.set_defaults(run=train)
    a = ap.parse_args()
    a.run(a)


if __name__ == "__main__":
    main()
