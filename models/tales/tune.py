"""Second stage: teach the model to use the words of a request.

    python tune.py tales.pt DATA_DIR CORPUS_DIR OUT.pt [--minutes 60]

The first stage sees story requests, but the few tokens that depend on a request
weigh little in its loss.  This stage trains the attention matrices alone, on
requests followed by the first tokens of a passage, with the places where an
asked word is first mentioned weighted up, and on plain text so that nothing is
forgotten.  All other parameters stay as they are.  It runs on a CPU.
"""
import argparse
import json
import random
import re
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import model as M
from data import BOS, EOT, LONG, OPENER, PLAIN, SCENE, STORY, Nouns, phrase, read_tales, split_title
from train import Muon, restore, save

TRAINED = ("q", "k", "v", "o")


class Samples:
    def __init__(self, tok, nouns, tales, length, first, seed=7):
        self.tok, self.nouns, self.length, self.first = tok, nouns, length, first
        self.tales = [split_title(t) for t in tales]
        self.rng = random.Random(seed)

    def plain(self):
        title, body = self.rng.choice(self.tales)
        at = self.rng.randrange(max(1, len(body) - 4 * self.length))
        at = body.find(" ", at) + 1
        ids = [BOS] + self.tok.encode(body[at:at + 8 * self.length], add_special_tokens=False).ids[:self.length]
        return ids, [0.0] + [1.0] * (len(ids) - 1)

    def request(self, kinds=None):
        """-> ids and the weight of each as a target"""
        rng = self.rng
        while True:
            title, body = rng.choice(self.tales)
            paras = body.split("\n\n")
            starts = [i for i, p in enumerate(paras) if i == 0 or (OPENER.match(p) and len(p) > 60)]
            text = "\n\n".join(paras[rng.choice(starts):])[:12 * self.length]
            if len(text) < 200:
                continue
            e = self.tok.encode(text, add_special_tokens=False)
            room = self.length - 28
            seen = text[:e.offsets[min(room, len(e.ids)) - 1][1]]  # what the sample will show
            found = self.nouns.salient(seen, 9)
            if len(found) < 2:
                continue
            keys = rng.sample(found[:6], min(rng.choice([1, 2, 2, 2, 2, 3]), len(found)))
            kind = kinds or rng.choices([STORY, SCENE, LONG, PLAIN], [12, 2, 1, 0.5])[0]
            if kind is PLAIN:
                keys = []
            request = phrase(rng, self.nouns, kind, keys)
            head = [BOS] + self.tok.encode("User: " + request, add_special_tokens=False).ids + [EOT]
            head += self.tok.encode("Assistant: ", add_special_tokens=False).ids
            weight = [1.0] * len(e.ids)
            for k in keys:
                for n, m in enumerate(re.finditer(rf"\b{k}(s|es)?\b", seen, re.I)):
                    for i, (a, b) in enumerate(e.offsets[:room + 1]):
                        if a < m.end() and b > m.start():
                            weight[i] = max(weight[i], self.first if n == 0 else 2.0)
            ids, weight = head + e.ids, [0.0] * len(head) + weight
            return ids[:self.length + 1], weight[:self.length + 1]

    def batch(self, n, plain):
        rows = [self.plain() if i < plain else self.request() for i in range(n)]
        ids = torch.zeros(n, self.length + 1, dtype=torch.long)
        w = torch.zeros(n, self.length + 1)
        for i, (a, b) in enumerate(rows):
            ids[i, :len(a)], w[i, :len(a)] = torch.tensor(a), torch.tensor(b)
        return ids[:, :-1], ids[:, 1:], w[:, 1:]


def loss_of(h, emb, y, w):
    z = F.linear(h, emb.to(h.dtype)).float()
    ce = torch.logsumexp(z, -1) - z.gather(1, y[:, None])[:, 0]
    return (ce * w).sum() / w.sum(), ce


@torch.no_grad()
def probe(model, batches):
    """On held-out passages: nats of other tokens, and of first mentions with the right and with a wrong request."""
    a = b = c = na = nb = 0.0
    for (x, y, w), wrong in batches:
        _, ce = loss_of(model.hidden(x).flatten(0, 1), model.embed.weight, y.flatten(), w.flatten())
        first, rest = w.flatten() > 2, w.flatten() == 1
        a, na = a + ce[rest].sum().item(), na + rest.sum().item()
        b, nb = b + ce[first].sum().item(), nb + first.sum().item()
        _, ce = loss_of(model.hidden(wrong).flatten(0, 1), model.embed.weight, y.flatten(), w.flatten())
        c += ce[first].sum().item()
    return dict(text=round(a / na, 4), keyword=round(b / nb, 4), keyword_wrong_request=round(c / nb, 4))


def swap_requests(x):
    """The same passages under the request of the next row (heads of other lengths are cut or filled)."""
    out = x.clone()
    for i in range(len(x)):
        j = (i + 1) % len(x)
        a, b = (int((r == EOT).nonzero()[0]) for r in (x[i], x[j]))
        head = x[j, 1:b]
        head = torch.cat([head[:2], head[2:].repeat(1 + a // max(1, b - 3))])[:a - 1] if a > b else head[b - a:]
        out[i, 1:a] = head
    return out


def main():
    ap = argparse.ArgumentParser()
    for name in ("checkpoint", "data", "corpus", "out"):
        ap.add_argument(name)
    ap.add_argument("--minutes", type=float, default=60)
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--rows", type=int, default=16)
    ap.add_argument("--plain", type=int, default=3)
    ap.add_argument("--length", type=int, default=160)
    ap.add_argument("--first", type=float, default=8.0, help="weight of the first mention of an asked word")
    ap.add_argument("--no-compile", action="store_true")
    a = ap.parse_args()
    torch.manual_seed(1)
    tok = Tokenizer.from_file(a.data + "/tokenizer.json")
    train, valid = (read_tales(f"{a.corpus}/{f}.txt.xz") for f in ("train", "valid"))
    nouns = Nouns(train)
    samples = Samples(tok, nouns, train, a.length, a.first)
    held = Samples(tok, nouns, valid, a.length, a.first, seed=3)
    probes = [held.batch(a.rows, 0) for _ in range(3)]
    probes = [(b, swap_requests(b[0])) for b in probes]
    model = restore(a.checkpoint, "cpu")
    masters = {n: p.detach().clone() for n, p in model.named_parameters() if n.split(".")[-1] in M.LINEARS}
    model.dtype = torch.bfloat16
    model.frozen = tuple(n for n in M.LINEARS if n not in TRAINED)
    for n, p in model.named_parameters():
        part = n.split(".")[-1]
        p.requires_grad_(part in TRAINED)
        if part in model.frozen:
            t, s = M.ternarise(p)
            p.data = (t * s.bfloat16().float()).bfloat16()
    if not a.no_compile:
        model.block_fn = torch.compile(M.block, dynamic=False)
    model.eval()  # no dropout: no passage comes twice
    params = [p for p in model.parameters() if p.requires_grad]
    muon = Muon(params)
    log, losses = [], []
    start = last = time.time()
    step = tokens = 0

    def report(share):
        row = dict(step=step, share=round(share, 3), minutes=round((time.time() - start) / 60, 1), tokens=tokens,
                   loss=round(sum(losses) / max(1, len(losses)), 4), **probe(model, probes))
        losses.clear()
        log.append(row)
        print(json.dumps(row), flush=True)
        full = restore(a.checkpoint, "cpu")
        with torch.no_grad():
            for (n, p), q in zip(model.named_parameters(), full.parameters()):
                q.copy_(masters[n] if n.split(".")[-1] in model.frozen else p)
        save(full, a.out)
        json.dump(log, open(a.out + ".json", "w"), indent=1)

    report(0.0)
    start = last = time.time()
    while True:
        done = (time.time() - start) / (a.minutes * 60)
        if done >= 1:
            break
        if time.time() - last > a.minutes * 60 / 12:
            report(done)
            last = time.time()
        x, y, w = samples.batch(a.rows, a.plain)
        loss, _ = loss_of(model.hidden(x).flatten(0, 1), model.embed.weight, y.flatten(), w.flatten())
        loss.backward()
        muon.step(a.lr * min(1.0, (done + 0.002) / 0.03) * (1 - done), 0.0)
        model.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step += 1
        tokens += x.numel()
    report(1.0)


if __name__ == "__main__":
    main()
