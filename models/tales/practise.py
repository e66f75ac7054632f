"""Third stage: the model tells tales, and learns those that do as asked.

    python practise.py tales.pt TUNED.pt DATA_DIR OUT.pt [--seconds 300]      one H100

tales.pt: the first stage; TUNED.pt: the second, where this begins.  In rounds TUNED.pt answers requests that
have no answer in the data, and is guided: the logits of the asked words are raised, where they fit, until
they have been told.  What has all asked words, ends and repeats little is learnt among the requests of the
data, so that the model does unguided what the guide made its predecessor do.  It answers requests itself,
too: of tales that go round in circles, what they repeat is unlearnt (unlikelihood training, Welleck et al.,
arXiv:1908.04319).

What it tells itself is not learnt: in a run where it was guided and learnt from that, with the earliest
mention preferred, it came to begin its tales "There crows crows foxs foxs", and 98 % of the asked words.

Now and then, and at the end, requests that are held out are answered with the settings of the product,
unguided.  Every examined model is kept as OUT.pt.N, the best as OUT.pt.
"""
import argparse
import json
import os
import random
import re
import shutil

import numpy as np
import torch
from tokenizers import Tokenizer

from data import pack
from evaluate import repeats
from tell import Teller, judged, pieces
from train import SKIP, restore, save
from tune import AGAIN, BOS, FIRST, Requests, Tuner, options, sample


def spellings(tok, word):
    """Tokens of a word within a text: as it is, and with a capital if that is one token."""
    small, capital = (tok.encode(" " + w, add_special_tokens=False).ids for w in (word, word.capitalize()))
    return [small, capital] if len(capital) == 1 else [small]


def unlearn(ask, answer, n=5):
    """A sample of which only what repeats is looked at: tokens that complete n tokens which occurred before."""
    seen, marked = set(), []
    for i, token in enumerate(answer):
        gram = tuple(answer[max(0, i - n + 1):i + 1])
        marked.append(token | (AGAIN if gram in seen else SKIP))
        seen.add(gram)
    return [BOS] + [t | SKIP for t in ask[1:]] + marked


def stuffed(keys, text):
    """Whether an asked word occurs more than once in the first twelve words: "There crows crows foxs foxs"."""
    words = re.findall(r"[\w']+", text.lower())[:12]
    return any(sum(w.startswith(k) for w in words) > 1 for k in keys)


class Practice:
    def __init__(self, a):
        self.a, self.t = a, Tuner(a, a.checkpoint, a.first_stage)
        tokenizer = os.path.join(a.data, "tokenizer.json")
        self.tok, self.bytes_of = Tokenizer.from_file(tokenizer), pieces(tokenizer)
        self.asks = json.load(open(os.path.join(a.data, "asks.json")))
        random.Random(5).shuffle(self.asks["practice"])
        self.asked, self.exams, self.exam_seconds, self.best = 0, 0, 15.0, None
        self.guided = restore(a.checkpoint, self.t.device)
        self.teller = Teller(self.t.model, a.side_by_side)

    def next_asks(self, n):
        asks = self.asks["practice"]
        self.asked += n
        return [asks[i % len(asks)] for i in range(self.asked - n, self.asked)]

    def good(self):
        """Guided answers to the next requests: (samples to learn from, share with all asked words)."""
        a, t = self.a, self.t
        asks = [ask for ask in self.next_asks(a.guided // a.group) for _ in range(a.group)]
        guides = [(a.urge, [spellings(self.tok, k) for k in keys]) for keys, _ in asks]
        self.teller.load(self.guided)
        tales = self.teller.tell([ask for _, ask in asks], [a.temperature] * len(asks), a.longest,
                                 t.begin + t.seconds() + 40, guides)
        good, hits = [], 0
        for (keys, ask), (answer, end) in zip(asks, tales):
            text, spans = judged(self.bytes_of, keys, answer)
            hits += all(spans)
            fit = all(spans) and end and len(answer) >= 60 and not stuffed(keys, text)
            if fit and repeats(text) < a.most_repeats:
                place, marked = 0, []
                for token in answer:
                    stop = place + len(self.bytes_of[token])
                    marked.append(token | (FIRST if any(x < stop and place < y for x, y in spans) else 0))
                    place = stop
                good.append(sample(ask, marked))
        return good, hits / len(asks)

    def circles(self):
        """Its own answers to the next requests, as the product draws them: (samples to unlearn, figures)."""
        a, t = self.a, self.t
        asks = self.next_asks(a.told)
        self.teller.load(t.model)
        tales = self.teller.tell([ask for _, ask in asks], [0.7] * len(asks), a.longest, t.begin + t.seconds() + 40)
        circles, hits = [], []
        for (keys, ask), (answer, _) in zip(asks, tales):
            text, spans = judged(self.bytes_of, keys, answer)
            hits.append(all(spans))
            if repeats(text) > a.circles:
                circles.append(unlearn(ask, answer))
        return circles, dict(all_words=round(float(np.mean(hits)), 4),
                             ended=round(float(np.mean([end for _, end in tales])), 4), circles=len(circles))

    def exam(self):
        """Held-out requests with the settings of the product: figures by set."""
        t = self.t
        sets = [(name, self.asks[name] * copies) for name, copies in (("common", 12), ("validation", 4))]
        if not t.cuda:
            sets = [(name, cases[:2]) for name, cases in sets]
        heads = [ask for _, cases in sets for _, ask in cases]
        self.teller.load(t.model)
        tales = self.teller.tell(heads, [0.7] * len(heads), t.model.cfg.context if t.cuda else 64, t.begin + self.a.seconds - 2)
        out, at = {}, 0
        for name, cases in sets:
            rows = [(judged(self.bytes_of, keys, answer), end, len(answer))
                    for (keys, _), (answer, end) in zip(cases, tales[at:at + len(cases)])]
            stuffing = [stuffed(keys, text) for (keys, _), ((text, _), _, _) in zip(cases, rows)]
            at += len(cases)
            mean = lambda xs: round(float(np.mean(xs)), 4)  # noqa: E731
            out[name] = dict(
                samples=len(rows), keywords=mean([bool(s) for (_, ss), _, _ in rows for s in ss]),
                all_keywords=mean([all(ss) for (_, ss), _, _ in rows]), ended=mean([e for _, e, _ in rows]),
                tokens=mean([n for _, _, n in rows]), stuffed=mean(stuffing),
                repeated_4grams=mean([repeats(x) for (x, _), _, _ in rows]))
            out[name]["examples"] = [x.encode("latin-1").decode("utf-8", "replace")[:600] for (x, _), _, _ in rows[:3]]
        return out

    def check(self, done, **more):
        """Examines and saves the model; as `out` if it is the best so far."""
        at = self.t.seconds()
        row = self.t.report(done, full=True, **more, exam=self.exam())
        self.exams += 1
        path = f"{self.a.out}.{self.exams}"
        save(self.t.model, path)
        common = row["exam"]["common"]
        short = (2 * max(0.0, 0.97 - common["ended"]) + max(0.0, common["repeated_4grams"] - 0.08)
                 + max(0.0, common["stuffed"] - 0.2))
        rank = (row["bits_per_char"] <= self.a.most_bits, common["keywords"] - short)
        if self.best is None or rank >= self.best:
            self.best = rank
            shutil.copy(path, self.a.out)
            print(f"exam {self.exams} is the best so far", flush=True)
        self.exam_seconds = self.t.seconds() - at

    def run(self):
        a, t = self.a, self.t
        start, rounds, good, circles, own = t.seconds(), 0, [], [], None
        n_own = round((a.rows - t.n_plain) * a.own)
        while True:
            end = a.seconds - 1.15 * self.exam_seconds - 3
            done = t.steps / a.steps if a.steps else (t.seconds() - start) / max(end - start, 1e-3)
            if done >= 1:
                break
            if done * a.rounds >= rounds:
                if t.cuda:
                    torch.cuda.empty_cache()
                at = t.seconds()
                told, share = self.good()
                good.append(pack(told))
                told, figures = self.circles()
                circles = [*circles[-2:], pack(told)]
                figures = dict(guided_all_words=round(share, 4), windows=[sum(map(len, good)), sum(map(len, circles))],
                               round_seconds=round(t.seconds() - at, 1), **figures)
                if rounds and rounds % a.examine == 0:
                    self.check(done, **figures)
                else:
                    t.report(done, **figures)
                rounds += 1
                windows = torch.from_numpy(np.concatenate(good + circles).astype(np.int32)).to(t.device)
                own = Requests(windows, t.device, a.first, a.end)
                n = min(n_own, len(windows))
                continue
            batch = [torch.cat(z) for z in zip(t.requests.batch(a.rows - t.n_plain - n), own.batch(n))]
            t.step(done, *batch)
        self.check(1.0)


def main():
    ap = argparse.ArgumentParser()
    for name in ("first_stage", "checkpoint", "data", "out"):
        ap.add_argument(name)
    options(ap, seconds=300.0, lr=2e-3, lr_embed=3e-4)
    ap.add_argument("--own", type=float, default=0.5, help="this share of the requests comes from practice")
    ap.add_argument("--rounds", type=int, default=10)
    ap.add_argument("--examine", type=int, default=3, help="rounds from one exam to the next")
    ap.add_argument("--guided", type=int, default=3072, help="guided answers a round")
    ap.add_argument("--told", type=int, default=1152, help="answers of its own a round")
    ap.add_argument("--side-by-side", type=int, default=3072, help="answers that are told at once")
    ap.add_argument("--group", type=int, default=2, help="guided answers to one request")
    ap.add_argument("--urge", type=float, default=3.0, help="what a guide adds to the logits of an asked word")
    ap.add_argument("--longest", type=int, default=640, help="tokens of a request with its answer")
    ap.add_argument("--temperature", type=float, default=0.85)
    ap.add_argument("--circles", type=float, default=0.15, help="with more repeats than this they are unlearnt")
    ap.add_argument("--most-repeats", type=float, default=0.05, help="repeated four-word phrases of a tale to be learnt")
    ap.add_argument("--most-bits", type=float, default=1.08, help="bits a character that the kept model may have")
    Practice(ap.parse_args()).run()


if __name__ == "__main__":
    main()
