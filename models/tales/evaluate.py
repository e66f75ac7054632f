"""Evaluation of a GGUF as it is shipped.

    python evaluate.py FILE.gguf DATA_DIR text              nats a token and bits a char on the validation books
    python evaluate.py FILE.gguf DATA_DIR tales [seeds]     keyword share, distinct-n, share that end, -> tales.json
    python evaluate.py FILE.gguf DATA_DIR table             a few samples at fixed seeds, as Markdown
"""
import json
import math
import os
import re
import sys

import torch
from tokenizers import Tokenizer

import model as M
from data import BOS, EOT
from export import from_gguf
from train import Data, evaluate

PAIRS = """fox crow|king princess|wolf lamb|bear honey|witch cat|giant boy|mouse lion|dragon knight|frog pond|rabbit garden
ship storm|queen mirror|owl forest|shoemaker elf|dog bone|miller donkey|hen egg|goat bridge|fairy flower|castle ghost
fisherman fish|star child|snow bird|tailor needle|turtle hare|monkey tree|soldier sword|mother baby|apple snake|robin nest
pig house|horse stable|farmer field|doll drum|clock night|magician ring|spider fly|squirrel nut|duck river|sailor island
wolf girl|prince tower|beggar coin|cow bell|goose gold|boy whistle|merchant camel|elephant circus|bee hive|lamp cave
tiger jungle|grandmother basket|wind sun|moon lake|thief treasure|cook kitchen|teacher school|train station|balloon cloud
carpenter chair|baker bread|goblin mine|mermaid sea|shepherd sheep|hunter deer|kitten ball|puppy shoe|crown robber""".replace("\n", "|")
MASS = {"honey", "snow", "gold", "wind", "sun", "moon", "bread", "sea", "sheep", "deer", "night", "storm"}


def article(w):
    if w in MASS:
        return "the " + w
    return ("an " if w[0] in "aeiou" else "a ") + w


def mentions(word, text):
    """The word itself, also as a plural or genitive or as part of a compound with a hyphen."""
    return re.search(rf"\b{word}(s|es)?\b", text, re.I) is not None


def chat_ids(tok, request):
    ids = [BOS] + tok.encode("User: " + request, add_special_tokens=False).ids + [EOT]
    return ids + tok.encode("Assistant: ", add_special_tokens=False).ids


def distinct(texts, n):
    """Different n-grams of words over all n-grams, on the first 100 words of each text."""
    grams = []
    for t in texts:
        w = re.findall(r"[\w']+", t.lower())[:100]
        grams += list(zip(*(w[i:] for i in range(n))))
    return len(set(grams)) / max(1, len(grams))


def repeats(text, n=4):
    """Share of the n-grams of a text that occurred in it before."""
    w = re.findall(r"[\w']+", text.lower())
    grams = list(zip(*(w[i:] for i in range(n))))
    return 1 - len(set(grams)) / max(1, len(grams))


def sample(model, tok, requests, seed, temperature, top_k, max_new=900):
    outs, ended = M.generate(model, [chat_ids(tok, r) for r in requests], max_new, temperature, top_k, seed)
    return [tok.decode(o) for o in outs], ended, [len(o) for o in outs]


def share(xs):
    return round(sum(xs) / max(1, len(xs)), 4)


def main():
    file, folder, what, *more = sys.argv[1:]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, _ = from_gguf(file)
    model.to(device)
    tok = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    meta = json.load(open(os.path.join(folder, "meta.json")))
    if what == "text":
        data = Data(folder, device)
        for stride in [int(x) for x in more] or [model.cfg.context, model.cfg.context // 2]:
            nats, count = evaluate(model, data, data.valid, model.cfg.context, stride, batch=4)
            model.eval()
            bits = nats * count / math.log(2) / meta["valid_chars"]
            print(f"stride {stride}: {nats:.4f} nats/token over {count} tokens, {bits:.4f} bits/char", flush=True)
        return
    if what == "tales":
        seeds = int(more[0]) if more else 2
        temperature, top_k = (float(more[1]), int(more[2])) if len(more) > 2 else (0.7, 40)
        sets = {"common": [(p.split(), "Tell me a story about " + " and ".join(map(article, p.split())) + ".")
                           for p in PAIRS.split("|")],
                "validation": [(p["keys"], p["request"]) for p in meta["prompts"]]}
        report, texts = {"temperature": temperature, "top_k": top_k}, []
        for name, cases in sets.items():
            rows = []
            for seed in range(1, seeds + 1):
                out, ended, n = sample(model, tok, [r for _, r in cases], seed, temperature, top_k)
                rows += [(k, r, t, e, ln) for (k, r), t, e, ln in zip(cases, out, ended, n)]
                hits = [[mentions(w, t) for w in k] for k, _, t, _, _ in rows]
                report[name] = {
                    "samples": len(rows), "both_keywords": share([all(h) for h in hits]),
                    "any_keyword": share([any(h) for h in hits]),
                    "keywords": share([x for h in hits for x in h]), "ended": share([x[3] for x in rows]),
                    "mean_tokens": round(sum(x[4] for x in rows) / len(rows)),
                    "distinct_1": round(distinct([x[2] for x in rows], 1), 4),
                    "distinct_2": round(distinct([x[2] for x in rows], 2), 4),
                    "repeated_4grams": share([repeats(x[2]) for x in rows])}
                print(name, "seeds", seed, report[name], flush=True)
            texts += rows
        json.dump({"report": report, "samples": texts}, open("tales.json", "w"), indent=0, ensure_ascii=False)
        return
    requests = ["Tell me a story about a fox and a crow.", "Write a fairy tale about a princess and a dragon.",
                "Tell me the story \"The Mouse Who Wanted the Moon\".", "Tell me a bedtime story about an owl."]
    for seed in (1, 2):
        out, _, _ = sample(model, tok, requests, seed, 0.7, 40)
        for r, t in zip(requests, out):
            print(f"**{r}** (seed {seed})\n\n" + "\n".join("> " + x for x in t.split("\n")) + "\n", flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
