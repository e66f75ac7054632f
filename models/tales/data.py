"""Corpus -> tokenizer.json, train.bin, chat.bin, valid.bin, prompts.json.

    python data.py CORPUS_DIR OUT_DIR [--vocab 4096] [--passes 6]

CORPUS_DIR holds train.txt.xz and valid.txt.xz: UTF-8 text of whole books, cut
into tales or chapters of at most 12,000 characters that are separated by a line
<|endoftext|>; a tale may start with "Title: ...\n\n".  SOURCES.md lists the
books.  They come from plain-text transcriptions of public-domain books: names,
licence text, headers, footers, tables of contents, illustration marks, notes
and most verse taken out; quotes, dashes, capitals and line breaks made uniform.

train.bin / valid.bin  every tale as <|begin_of_text|> text <|end_of_text|>
chat.bin               windows of 1,025 tokens packed with story requests:
                       <|begin_of_text|>User: request<|eot_id|>Assistant: tale<|eot_id|>
All are uint16; bit 15 marks tokens that the loss skips (requests, padding).
"""
import argparse
import json
import lzma
import os
import random
import re
from collections import Counter

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, EOT, PAD = 0, 1, 2, 3
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|pad|>"]
SKIP = 0x8000
# the pre-tokeniser that GGUF calls llama-bpe
LLAMA_BPE = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
             r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CHAT_TEMPLATE = ("{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
                 "{{ message['role'] | capitalize + ': ' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
                 "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}")


def read_tales(path):
    text = lzma.open(path, "rt", encoding="utf-8").read()
    return [d.strip() for d in text.split("<|endoftext|>") if d.strip()]


def split_title(tale):
    m = re.match(r"Title: (.*)\n\n", tale)
    return (m.group(1).strip(), tale[m.end():].strip()) if m else (None, tale)


def train_tokenizer(tales, vocab):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA_BPE), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(tales, trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    tok.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A $B", special_tokens=[("<|begin_of_text|>", BOS)])
    return tok


# ---- story requests, derived from the tales --------------------------------------------------

WORD = re.compile(r"[A-Za-z][a-z]+")
DETERMINERS = set("the a an his her my your their our its this that no every another each".split())
FUNCTION = set("""and or but of in on at to for with from by into as was were is are had has have did do does would could
 should will can may might must not so that which who whom when where while if then than said came went over under up
 down out he she it they i you we him them before after about through upon because until all there""".split())
WEAK = set("""time day way thing things one other first last rest end side part place moment kind sort matter bit lot
 minute while something nothing anything everything others same whole next most least sight word words reason course
 idea fact use hand hands eyes head face back name life night morning evening hour hours days year years people man men
 great little good old two three more such own very much many few half best better doubt trouble work turn top bottom
 middle front left right edge air sound story tale chapter book title""".split())
STEMS = re.compile(r"(ing|ly|ed)$")


class Nouns:
    """A list of nouns found by counting: a word is taken for a noun where it often stands
    between a determiner and a function word or a mark.  No other linguistic resource."""

    def __init__(self, tales):
        total, noun, with_a, docs = Counter(), Counter(), Counter(), Counter()
        for t in tales:
            words = re.findall(r"[A-Za-z]+|[^A-Za-z\s]", t)
            low = [w.lower() for w in words]
            docs.update(set(low))
            total.update(low)
            for a, b, c in zip(low, low[1:], low[2:]):
                if a in DETERMINERS and b.isalpha() and len(b) > 2 and (c in FUNCTION or not c.isalpha()):
                    noun[b] += 1
                    if a in ("a", "an"):
                        with_a[b] += 1
        self.docs, self.n = docs, len(tales)
        self.article = {}
        for w, c in noun.items():
            if c >= 12 and c > 0.22 * total[w] and w not in WEAK and w not in FUNCTION and not STEMS.search(w):
                if docs[w] < 0.25 * len(tales):
                    plural = w.endswith("s") and w[:-1] in total and not w.endswith("ss")
                    countable = not plural and with_a[w] >= 0.04 * c and with_a[w] >= 2
                    self.article[w] = ("an " if w[0] in "aeiou" else "a ") if countable else ""

    def salient(self, text, top=12):
        """Nouns of a text with their weights (frequency here times rarity elsewhere)."""
        tf = Counter(w.lower() for w in WORD.findall(text))
        scored = [(c ** 0.7 * np.log(self.n / self.docs[w]), w) for w, c in tf.items() if w in self.article]
        scored.sort(reverse=True)
        out = []
        for _, w in scored:  # not both "fox" and "foxes"
            if not any(w.startswith(o[:-1]) or o.startswith(w[:-1]) for o in out):
                out.append(w)
        return out[:top]


STORY = ["Tell me a story about {k}.", "Tell me a tale about {k}.", "Tell me a short story about {k}.",
         "Write a story about {k}.", "Write a fairy tale about {k}.", "Write a short fairy tale with {k} in it.",
         "I would like to hear a story about {k}.", "Can you tell me a story about {k}?",
         "Please tell me a bedtime story about {k}.", "Tell a story with {k}.", "A story about {k}, please.",
         "Make up a little story about {k}.", "Story words: {l}.", "Use these words in a story: {l}.",
         "Tell me a story about {k}.", "{K}", "Write a children's story that has {k} in it.",
         "Once upon a time there was {k}. Tell me more.", "Tell me a fable about {k}."]
TITLED = ['Tell me the story "{t}".', "Tell me the tale of {t}.", 'Write a story called "{t}".', "{t}",
          'Tell me a story named "{t}".', 'Write a tale with the title "{t}".']
BOTH = ['Tell me the story "{t}". It has {k} in it.', 'Write a story called "{t}" about {k}.']
PLAIN = ["Tell me a story.", "Tell me a short story.", "Tell me a fairy tale.", "Write a story for children.",
         "I want to hear a story!", "Please tell me a bedtime story."]
SCENE = ["Write a scene with {k}.", "Tell me a little piece of a story with {k}.", "Write a passage about {k}.",
         "A scene with {k}, please.", "Write a few paragraphs with {k} in them.", "Scene words: {l}."]
LONG = ["Begin a long story about {k}.", "Start a long tale about {k}.", "Tell me the beginning of a long story about {k}."]
LONG_TITLED = ['Begin a long story called "{t}".', 'Start a long tale named "{t}", about {k}.']
ENDING = ["Tell me how a story about {k} ends.", "Write the end of a tale about {k}."]


def keywords(rng, nouns, text):
    """1 to 4 salient nouns of a text; those of its first half are preferred."""
    found = nouns.salient(text)
    if not found:
        return []
    n = min(rng.choice([1, 2, 2, 2, 2, 3, 3, 4]), len(found))
    weight = [1.0 / (i + 2) for i in range(len(found))]
    picked = []
    while len(picked) < n:
        w = rng.choices(found, weight)[0]
        if w not in picked:
            picked.append(w)
    return picked


def phrase(rng, nouns, kind, keys, title=None):
    ks = [nouns.article.get(k, "a ") + k for k in keys]
    listed = ks[0] if len(ks) == 1 else ", ".join(ks[:-1]) + " and " + ks[-1] if ks else ""
    s = rng.choice(kind)
    s = s.replace("{k}", listed).replace("{K}", listed[:1].upper() + listed[1:])
    return s.replace("{l}", ", ".join(keys)).replace("{t}", title or "")


OPENER = re.compile(r"(Once|One|There (was|were|lived|came|once)|Long|In (the|a|those|days)|A |An |When|Now|At|The|Many|"
                    r"Not|It was|It happened|On|Far|Up|Down|After|Early|[A-Z][a-z]+ [A-Z][a-z]+ )")


def passages(rng, tok, body, count):
    """Runs of whole paragraphs of 100-800 tokens from a long tale: (text, is_ending)."""
    paras = body.split("\n\n")
    lens = [len(e.ids) + 1 for e in tok.encode_batch(paras, add_special_tokens=False)]
    starts = [i for i in range(1, len(paras)) if OPENER.match(paras[i])]
    out = []
    for j in range(count):
        want = rng.choice([150, 200, 300, 400, 500, 700])
        if j == 0:  # the ending
            i, n = len(paras), 0
            while i > 0 and n + lens[i - 1] <= want * 1.4:
                i -= 1
                n += lens[i]
            later = [k for k in starts if k >= i and sum(lens[k:]) >= 100]
            if later:
                out.append(("\n\n".join(paras[later[0]:]), True))
        elif starts:
            i = rng.choice(starts)
            e, n = i, 0
            while e < len(paras) and n < want and n + lens[e] <= 850:
                n += lens[e]
                e += 1
            # end on narration, not inside a speech that goes on
            while e - 1 > i and paras[e - 1].rstrip().endswith((",", ":", "-", ";")):
                e -= 1
            if 80 <= n <= 900 and e > i:
                out.append(("\n\n".join(paras[i:e]), e == len(paras)))
    return out


def encode_chat(tok, request, tale, end=True, limit=1025):
    head = [BOS] + tok.encode(f"User: {request}", add_special_tokens=False).ids + [EOT]
    head += tok.encode("Assistant: ", add_special_tokens=False).ids
    body = tok.encode(tale, add_special_tokens=False).ids + ([EOT] if end else [])
    return [head[0]] + [t | SKIP for t in head[1:]] + body[:limit - len(head)]


def chat_pass(rng, tok, nouns, tales):
    """One pass over the corpus as story requests with their answers."""
    out = []
    for tale in tales:
        title, body = split_title(tale)
        n = len(tok.encode(body, add_special_tokens=False).ids)
        if n <= 960:  # a whole tale: all kinds of requests
            for _ in range(2):
                keys = keywords(rng, nouns, body)
                r = rng.random()
                if r < 0.72 and keys:
                    req = phrase(rng, nouns, STORY, keys)
                elif r < 0.9 and title:
                    req = phrase(rng, nouns, TITLED if r < 0.84 or not keys else BOTH, keys, title)
                else:
                    req = phrase(rng, nouns, PLAIN, keys)
                out.append(encode_chat(tok, req, body))
            continue
        r = rng.random()
        if r < 0.12:  # the opening of a long tale: no end in sight, so no end token
            keys = keywords(rng, nouns, body[:3000])
            kind = LONG_TITLED if title and rng.random() < 0.5 else LONG
            if keys:
                out.append(encode_chat(tok, phrase(rng, nouns, kind, keys, title), body, end=False))
        for text, ending in passages(rng, tok, body, 2 if r < 0.6 else 1):
            keys = keywords(rng, nouns, text)
            if keys:
                kind = (STORY if rng.random() < 0.7 else ENDING) if ending else SCENE
                out.append(encode_chat(tok, phrase(rng, nouns, kind, keys), text))
    rng.shuffle(out)
    return out


def pack(samples, width=1025):
    """First fit into windows; the rest of a window is padding that the loss skips."""
    windows, open_ = [], []
    for s in samples:
        for w in open_:
            if len(w) + len(s) <= width:
                w.extend(s)
                break
        else:
            w = list(s)
            windows.append(w)
            open_.append(w)
        open_ = [w for w in open_ if len(w) < width - 60][-40:]
    arr = np.full((len(windows), width), PAD | SKIP, dtype=np.uint16)
    for i, w in enumerate(windows):
        arr[i, :len(w)] = w
    return arr


def stream(tok, tales):
    ids = []
    for e in tok.encode_batch(tales, add_special_tokens=False):
        ids += [BOS] + e.ids + [EOS]
    return np.array(ids, dtype=np.uint16)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("corpus")
    ap.add_argument("out")
    ap.add_argument("--vocab", type=int, default=4096)
    ap.add_argument("--passes", type=int, default=6, help="passes over the corpus as story requests")
    a = ap.parse_args()
    os.makedirs(a.out, exist_ok=True)
    rng = random.Random(1234)
    train, valid = (read_tales(os.path.join(a.corpus, f + ".txt.xz")) for f in ("train", "valid"))
    tok = train_tokenizer(train, a.vocab)
    tok.save(os.path.join(a.out, "tokenizer.json"))
    nouns = Nouns(train)
    tr, va = stream(tok, train), stream(tok, valid)
    tr.tofile(os.path.join(a.out, "train.bin"))
    va.tofile(os.path.join(a.out, "valid.bin"))
    chat = np.concatenate([pack(chat_pass(rng, tok, nouns, train)) for _ in range(a.passes)])
    chat.tofile(os.path.join(a.out, "chat.bin"))
    # requests for the evaluation: keywords of tales of the validation books
    prompts = []
    for tale in valid:
        keys = [k for k in nouns.salient(split_title(tale)[1], 10) if nouns.article[k]]
        if len(keys) >= 2:
            keys = rng.sample(keys, 2)
            prompts.append({"keys": keys, "request": "Tell me a story about " +
                            " and ".join(nouns.article[k] + k for k in keys) + "."})
    meta = {"valid_chars": sum(map(len, valid)), "train_chars": sum(map(len, train)), "train_tokens": len(tr),
            "valid_tokens": len(va), "chat_windows": len(chat), "chat_tokens": int((chat < SKIP).sum()),
            "nouns": len(nouns.article), "vocab": a.vocab, "prompts": prompts}
    json.dump(meta, open(os.path.join(a.out, "meta.json"), "w"), indent=1)
    print({k: v for k, v in meta.items() if k != "prompts"})


if __name__ == "__main__":
    main()
