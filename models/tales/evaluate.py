"""Evaluation of a GGUF as it is shipped, with the program that runs it.

    python evaluate.py BITNET FILE.gguf DATA_DIR tales [passes]  keyword share, share that end, distinct-n -> tales.json
    python evaluate.py BITNET FILE.gguf DATA_DIR table           a few samples at fixed seeds, as Markdown

(Bits a character are `bitnet eval FILE.gguf --text BOOKS`.)  Sampling is the
program's default: temperature 0.7, top-k 40; a tale ends at 1,024 tokens at the
latest, request included.
"""
import json
import os
import re
import subprocess
import sys

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


def pair_request(pair):
    return "Tell me a story about " + " and ".join(map(article, pair.split())) + "."


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


def tell(bitnet, file, request, seed):
    """-> text, whether the model ended it, number of tokens"""
    out = subprocess.run([bitnet, "generate", file, "--chat", "--prompt", request, "--seed", str(seed), "--context",
                          "1024", "--backend", "cpu", "--json", "--quiet"], stdout=subprocess.PIPE, check=True).stdout
    out = json.loads(out)
    return out["text"], out["finish_reason"] == "eos", out["completion_tokens"]


def share(xs):
    return round(sum(xs) / max(1, len(xs)), 4)


def tales(bitnet, file, folder, passes):
    prompts = json.load(open(os.path.join(folder, "meta.json")))["prompts"]
    sets = {"common": [(p.split(), pair_request(p)) for p in PAIRS.split("|")],
            "validation": [(p["keys"], p["request"]) for p in prompts]}
    report, samples = {}, []
    for name, cases in sets.items():
        # A seed of its own for each: tales of one seed are drawn with the same noise, and fare alike.
        rows = [(keys, seed, request, *tell(bitnet, file, request, seed))
                for seed, (keys, request) in enumerate(cases * passes, 100)]
        texts = [row[3] for row in rows]
        hits = [[mentions(word, text) for word in row[0]] for row, text in zip(rows, texts)]
        report[name] = {
            "samples": len(rows), "keywords": share([x for h in hits for x in h]),
            "both_keywords": share([all(h) for h in hits]), "any_keyword": share([any(h) for h in hits]),
            "ended": share([row[4] for row in rows]), "mean_tokens": round(sum(row[5] for row in rows) / len(rows)),
            "distinct_1": round(distinct(texts, 1), 4), "distinct_2": round(distinct(texts, 2), 4),
            "repeated_4grams": share([repeats(text) for text in texts])}
        print(name, report[name], flush=True)
        samples += rows
    json.dump({"report": report, "samples": samples}, open("tales.json", "w"), indent=0, ensure_ascii=False)


def table(bitnet, file):
    for request in ("Tell me a story about a fox and a crow.", "Write a fairy tale about a princess and a dragon.",
                    "Tell me the story \"The Mouse Who Wanted the Moon\".", "Tell me a bedtime story about an owl."):
        for seed in (1, 2):
            text = tell(bitnet, file, request, seed)[0]
            print(f"**{request}** (seed {seed})\n\n" + "\n".join("> " + x for x in text.split("\n")) + "\n", flush=True)


def main():
    bitnet, file, folder, what, *more = sys.argv[1:]
    if what == "tales":
        tales(bitnet, file, folder, int(more[0]) if more else 2)
    else:
        table(bitnet, file)


if __name__ == "__main__":
    main()
