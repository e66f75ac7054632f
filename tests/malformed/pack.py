#!/usr/bin/env python3
"""Packs a folder of malformed model files into corpus.json: every file as a patch of a valid one.

    pack.py FOLDER SHA256SUMS

FOLDER holds manifest.json and the cases, SHA256SUMS their checksums (paths end in malformed/NAME).
A patch is a list of [start, end) ranges of the base, hex strings, and {"hex", "times"} repetitions.
"""
import hashlib, json, pathlib, re, sys

BASES = ["ok-control.gguf", "ok-control.safetensors", "ok-folder/config.json",
         "ok-folder/model.safetensors", "ok-folder/tokenizer.json"]
WINDOW = 16


def fnv1a(data):
    h = 0xCBF29CE484222325
    for b in data:
        h = (h ^ b) * 0x100000001B3 % 2**64
    return h


def literal(data):
    """Hex strings, with runs of a short unit as repetitions."""
    best = (0, 0, 0)
    for unit in range(1, 17):
        for start in range(min(64, len(data))):
            times = 1
            while data[start:start + unit] == data[start + times * unit:start + (times + 1) * unit] != b"":
                times += 1
            best = max(best, (unit * times, start, unit))
    length, start, unit = best
    if length < 256:
        return [data.hex()] * (len(data) > 0)
    run = {"hex": data[start:start + unit].hex(), "times": length // unit}
    return [data[:start].hex()] * (start > 0) + [run] + literal(data[start + length:])


def patch(base, data):
    places = {}
    for i in range(len(base) - WINDOW, -1, -1):
        places.setdefault(base[i:i + WINDOW], []).append(i)
    ops, text, at, last = [], bytearray(), 0, 0
    while at < len(data):
        best = (0, 0)
        # The place that goes on where the last range ended is tried first.
        for i in [last] + places.get(data[at:at + WINDOW], [])[-64:]:
            n = 0
            while at + n < len(data) and i + n < len(base) and base[i + n] == data[at + n]:
                n += 1
            best = max(best, (n, -i))
        n, i = best[0], -best[1]
        if n < WINDOW:
            text.append(data[at])
            at += 1
            continue
        if text:
            ops.extend(literal(bytes(text)))
            text.clear()
        ops.append([i, i + n])
        at, last = at + n, i + n
    if text:
        ops.extend(literal(bytes(text)))
    return ops


def apply(base, ops):
    out = b""
    for op in ops:
        out += (base[op[0]:op[1]] if isinstance(op, list) else
                bytes.fromhex(op["hex"]) * op["times"] if isinstance(op, dict) else bytes.fromhex(op))
    return out


def main(folder, sums):
    folder, here = pathlib.Path(folder), pathlib.Path(__file__).parent
    lines = re.findall(r"(\w{64})\s+\S*malformed/(\S+)", pathlib.Path(sums).read_text())
    sums = {name: digest for digest, name in lines}
    bases = {}
    for name in BASES:
        bases[name] = (folder / name).read_bytes()
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(bases[name])
    cases = []
    for case in json.loads((folder / "manifest.json").read_text())["cases"]:
        name = case["file"]
        files = sorted(p.name for p in (folder / name).iterdir()) if name.endswith("/") else [""]
        patches = {}
        for file in files:
            data = (folder / name / file).read_bytes() if file else (folder / name).read_bytes()
            assert hashlib.sha256(data).hexdigest() == sums[name + file], name + file
            base = "ok-folder/" + file if file else "ok-control." + name.rsplit(".", 1)[1]
            ops = patch(bases.get(base, b""), data)
            assert apply(bases.get(base, b""), ops) == data
            patches[file] = {"base": base if base in bases else None, "ops": ops,
                             "fnv1a": f"{fnv1a(data):016x}"}
        cases.append({"name": name.rstrip("/"), "category": case["category"],
                      "must_load": case["must_load"], "expect": case["expect"], "files": patches})
    lines = ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases)
    (here / "corpus.json").write_text("[\n" + lines + "\n]\n")


main(*sys.argv[1:])
