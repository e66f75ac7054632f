"""Training: one or several runs, one after another, in one process.

    python train.py DATA_DIR OUT_DIR plan.json

The plan is a list of runs (keys: see DEFAULT).  Each run has a budget of seconds;
the learning rate follows the share of the budget that is spent, so that a run
always ends.  A run may name an earlier run (or a file) as teacher: its 32 most
likely tokens at every position of the data are computed once and used as soft
targets beside the labels.  "best_of": [names] copies optimiser, rates, teacher and
dropout from the best of earlier runs.
"""
import json
import lzma
import math
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

import model as M

BOS, SKIP = 0, 0x8000
DEFAULT = dict(
    name="tales", seconds=60, batch=48, chat=0.4, seed=1,
    hidden=512, layers=10, heads=8, kv_heads=4, ffn=1536, context=1024, dropout=0.1, ternary=True,
    optimizer="muon", lr=2e-3, lr_embed=2e-3, wd=0.1, wd_until=0.5, warmup=0.02, decay_from=0.0,
    teacher=None, kd=0.5, compile=True, evals=6, max_steps=0)
TOPK = 32


def load(data, name):
    path = os.path.join(data, name)
    raw = lzma.open(path + ".xz").read() if os.path.exists(path + ".xz") else open(path, "rb").read()
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint16).astype(np.int32))


class Data:
    def __init__(self, folder, device, windows="chat.bin"):
        self.meta = json.load(open(os.path.join(folder, "meta.json")))
        self.train = load(folder, "train.bin").to(device)
        self.valid = load(folder, "valid.bin").to(device)
        self.chat = load(folder, windows).view(-1, 1025).to(device)
        self.device = device
        self.order, self.at = None, 0

    def windows(self, stream, starts, n):
        """Inputs begin with <|begin_of_text|>, also in the middle of a tale."""
        at = starts[:, None] + torch.arange(n, device=self.device)
        y = stream[at].long()
        x = torch.cat([torch.full_like(y[:, :1], BOS), y[:, :-1]], 1)
        return x, torch.where(y == BOS, -1, y), at

    def batch(self, n, n_chat, ctx):
        """-> inputs, targets (-1: skipped), positions in the list of soft targets"""
        starts = torch.randint(0, len(self.train) - ctx, (n - n_chat,), device=self.device)
        x, y, at = self.windows(self.train, starts, ctx)
        if n_chat:
            if self.order is None or self.at + n_chat > len(self.order):
                self.order, self.at = torch.randperm(len(self.chat), device=self.device), 0
            rows = self.order[self.at:self.at + n_chat]
            self.at += n_chat
            w = self.chat[rows].long()
            cx, cy = (w & 0x7FFF)[:, :ctx], w[:, 1:ctx + 1]
            cy = torch.where((cy >= SKIP) | (cy == BOS), -1, cy)
            cat = len(self.train) + rows[:, None] * 1024 + torch.arange(ctx, device=self.device)
            x, y, at = torch.cat([x, cx]), torch.cat([y, cy]), torch.cat([at, cat])
        return x, y, at


@torch.no_grad()
def evaluate(model, data, stream, ctx, stride=None, limit=None, batch=32):
    """(nats a token, tokens) over a stream in windows of ctx; with a stride below ctx only the last
    `stride` tokens of a window count (the first window: all)."""
    model.eval()
    stride = stride or ctx
    starts = torch.arange(0, max(1, len(stream) - 1), stride, device=data.device)
    if stride < ctx:
        starts = torch.arange(0, len(stream) - ctx + stride, stride, device=data.device)
    starts = starts[:limit]
    total, count = 0.0, 0
    pad = torch.cat([stream, torch.zeros(ctx, dtype=stream.dtype, device=data.device)])
    for i in range(0, len(starts), batch):
        x, y, at = data.windows(pad, starts[i:i + batch], ctx)
        y = torch.where(at < len(stream), y, -1)
        if stride < ctx:
            keep = (torch.arange(ctx, device=data.device) >= ctx - stride)[None] | (starts[i:i + batch] == 0)[:, None]
            y = torch.where(keep, y, -1)
        total += F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-1, reduction="sum").item()
        count += int((y >= 0).sum())
    model.train()
    return total / count, count


@torch.no_grad()
def soft_targets(teacher, data, ctx):
    """Top 32 of the teacher at every position of train (windows that overlap) and chat:
    ids (int16) and probabilities (half)."""
    teacher.eval()
    n, c = len(data.train), len(data.chat)
    ids = torch.zeros(n + c * 1024, TOPK, dtype=torch.int16, device=data.device)
    pr = torch.zeros(n + c * 1024, TOPK, dtype=torch.float16, device=data.device)

    def put(logits, at):
        p, i = torch.softmax(logits, -1).topk(TOPK)
        ids[at], pr[at] = i.to(torch.int16), p.half()

    new = ctx * 3 // 4  # positions that a window adds; it sees at least a quarter of a window before them
    starts = torch.arange(0, n - ctx, new, device=data.device)
    starts = torch.cat([starts, torch.tensor([n - ctx], device=data.device)])
    for i in range(0, len(starts), 48):
        x, _, at = data.windows(data.train, starts[i:i + 48], ctx)
        logits = teacher(x)
        if i == 0:
            put(logits[:1, :ctx - new].flatten(0, 1), at[:1, :ctx - new].flatten())
        put(logits[:, ctx - new:].flatten(0, 1), at[:, ctx - new:].flatten())
    for i in range(0, c, 48):
        w = data.chat[i:i + 48].long() & 0x7FFF
        at = n + torch.arange(i, i + len(w), device=data.device)[:, None] * 1024 + torch.arange(ctx, device=data.device)
        put(teacher(w[:, :ctx]).flatten(0, 1), at.flatten())
    return ids, pr


def head_loss(h, emb, y, ids, pr, kd: float):
    """Cross entropy with the labels and, with a teacher, with its distribution: 32 tokens
    and one bucket for all others.  h: [tokens, hidden] -> (loss, plain cross entropy)"""
    z = F.linear(h, emb.to(h.dtype)).float()
    lse = torch.logsumexp(z, -1)
    keep = y >= 0
    count = keep.sum().clamp(min=1)
    ce = lse - z.gather(1, y.clamp(min=0)[:, None])[:, 0]
    ce = torch.where(keep, ce, 0.0).sum() / count
    if ids is None:
        return ce, ce.detach()
    lq = z.gather(1, ids.long()) - lse[:, None]
    p = pr.float()
    rest = (1 - p.sum(-1)).clamp(min=0)
    qrest = (1 - lq.exp().sum(-1)).clamp(min=1e-5)
    soft = -(p * lq).sum(-1) - rest * qrest.log()
    soft = torch.where(keep, soft, 0.0).sum() / count
    return (1 - kd) * ce + kd * soft, ce.detach()


def orthogonalise(g):
    """Newton-Schulz iteration on a stack of matrices with rows <= columns."""
    x = g.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


class Muon:
    """Momentum, made orthogonal, for the matrices of the blocks (scaled to AdamW's update size)."""

    def __init__(self, params, momentum=0.95):
        groups = {}
        for p in params:
            groups.setdefault((min(p.shape), max(p.shape)), []).append(p)
        self.groups = [(ps, torch.zeros(len(ps), *shape, device=ps[0].device)) for shape, ps in groups.items()]
        self.momentum = momentum

    @torch.no_grad()
    def step(self, lr, wd):
        for ps, buf in self.groups:
            flip = [p.shape[0] > p.shape[1] for p in ps]
            g = torch.stack([p.grad.mT if f else p.grad for p, f in zip(ps, flip)])
            buf.lerp_(g, 1 - self.momentum)
            u = orthogonalise(g.lerp(buf, self.momentum)).float()
            u = [x.mT if f else x for x, f in zip(u.unbind(), flip)]
            torch._foreach_mul_(ps, 1 - lr * wd)
            torch._foreach_add_(ps, u, alpha=-lr * 0.2 * math.sqrt(max(ps[0].shape)))


def save(model, path):
    torch.save({"config": model.cfg.dict(), "state": {n: p.detach().bfloat16().cpu()
                                                      for n, p in model.state_dict().items()}}, path)


def restore(path, device):
    d = torch.load(path, map_location="cpu")
    m = M.Model(M.Config(**d["config"]))
    m.load_state_dict({n: t.float() for n, t in d["state"].items()})
    return m.to(device)


def run(r, data, out, log, soft=None, deadline=None):
    start = time.time()
    dev = data.device
    torch.manual_seed(r["seed"])
    cfg = M.Config(vocab=data.meta["vocab"], **{k: r[k] for k in ("hidden", "layers", "heads", "kv_heads", "ffn",
                                                                "context", "dropout", "ternary")})
    model = M.Model(cfg).to(dev)
    cuda = dev == "cuda"
    model.dtype = torch.bfloat16 if cuda else torch.float32
    mats = [p for n, p in model.named_parameters() if n.split(".")[-1] in M.LINEARS]
    other = [p for n, p in model.named_parameters() if n.split(".")[-1] not in M.LINEARS]
    groups = [{"params": other, "base": r["lr_embed"], "weight_decay": 0.0}]
    muon = None
    if r["optimizer"] == "muon":
        muon = Muon(mats)
    else:
        groups.append({"params": mats, "base": r["lr"], "weight_decay": r["wd"]})
    adam = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, fused=cuda)
    eager = model.block_fn
    fast, loss_fn = eager, head_loss
    if r["compile"]:
        fast, loss_fn = torch.compile(eager, dynamic=False), torch.compile(head_loss, dynamic=False)
    n_chat = round(r["batch"] * r["chat"])
    ids, pr = soft if soft else (None, None)
    half = len(data.train) // 2
    peek = data.train[half:half + 65 * 1024]  # a piece of the training text, to see the gap

    def forward(block_fn, head):
        x, y, at = data.batch(r["batch"], n_chat, cfg.context)
        model.block_fn = block_fn
        h = model.hidden(x).flatten(0, 1)
        at = at.flatten()
        return head(h, model.embed.weight, y.flatten(), ids[at] if soft else None, pr[at] if soft else None, r["kd"])

    model.train()
    try:  # compile, outside the schedule
        forward(fast, loss_fn)[0].backward()
    except Exception as e:  # noqa: BLE001 - train without the compiler rather than not at all
        print("compile failed, running without:", repr(e)[:2000], flush=True)
        fast, loss_fn = eager, head_loss
        forward(fast, loss_fn)[0].backward()
    if cuda:
        torch.cuda.synchronize()
    params = sum(p.numel() for p in model.parameters())
    print(f"[{r['name']}] {params / 1e6:.1f} M parameters, ready after {time.time() - start:.0f} s", flush=True)
    adam.zero_grad()
    t0 = time.time()
    end = start + r["seconds"] if deadline is None else min(deadline, start + r["seconds"])
    budget = max(end - t0, 1e-3)
    step, tokens, seen, next_eval = 0, 0, 0.0, 1
    history, ces = [], []
    while True:
        done = min(1.0, (time.time() - t0) / budget)
        if r["max_steps"]:
            done = max(done, step / r["max_steps"])
        # quick and dirty evaluation now and then; a full one at the end
        if done * r["evals"] >= next_eval or done >= 1:
            model.block_fn = eager
            final = done >= 1
            va, _ = evaluate(model, data, data.valid, cfg.context, limit=None if final else 64)
            tr, _ = evaluate(model, data, peek, cfg.context, limit=32)
            mean = float(torch.stack(ces).mean()) if ces else 0.0
            rate = tokens / max(time.time() - t0, 1e-3)
            row = dict(run=r["name"], step=step, share=round(done, 3), tokens=tokens, seconds=round(time.time() - start, 1),
                       loss=round(mean, 4), train_eval=round(tr, 4), valid=round(va, 4), rate=round(rate))
            history.append(row)
            print(json.dumps(row), flush=True)
            ces = []
            next_eval = int(done * r["evals"]) + 1
            if final:
                break
            if next_eval in (r["evals"] // 2, r["evals"] - 1) and r["seconds"] > 150:
                save(model, os.path.join(out, r["name"] + ".pt.tmp"))
        scale = min(1.0, (done + 1e-4) / r["warmup"])
        if done > r["decay_from"]:
            scale *= 1 - 0.99 * (done - r["decay_from"]) / (1 - r["decay_from"])
        wd = r["wd"] if done < r["wd_until"] else 0.0
        for g in adam.param_groups:
            g["lr"] = g["base"] * scale
            if len(adam.param_groups) > 1 and g is adam.param_groups[1]:
                g["weight_decay"] = wd
        loss, ce = forward(fast, loss_fn)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(other if muon else model.parameters(), 1.0)
        if muon:
            muon.step(r["lr"] * scale, wd)
        adam.step()
        model.zero_grad(set_to_none=True)
        ces.append(ce)
        step += 1
        tokens += r["batch"] * cfg.context
        if cuda and step % 8 == 0:
            torch.cuda.synchronize()
    model.block_fn = eager
    log.append(dict(plan=r, params=params, history=history))
    json.dump(log, open(os.path.join(out, "log.json"), "w"), indent=1)
    save(model, os.path.join(out, r["name"] + ".pt"))
    return model


def main():
    data_dir, out, plan = sys.argv[1:4]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    begin = time.time()
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64
    plan = json.loads(plan) if plan.lstrip().startswith("[") else json.load(open(plan))
    os.makedirs(out, exist_ok=True)
    data = Data(data_dir, device)
    print(f"data on {device} after {time.time() - begin:.0f} s", flush=True)
    log, models, soft = [], {}, {}
    for r in plan:
        if "best_of" in r:  # take the settings of the best of earlier runs
            runs = [x for x in log if x["plan"]["name"] in r["best_of"]]
            best = min(runs, key=lambda x: x["history"][-1]["valid"])["plan"]
            print(f"{r['name']} follows {best['name']}", flush=True)
            r = {**{k: best[k] for k in ("optimizer", "lr", "lr_embed", "wd", "teacher", "kd", "dropout")}, **r}
        r = {**DEFAULT, **r}
        t = r["teacher"]
        s = None
        if t:
            if t not in soft:
                t1 = time.time()
                teacher = models[t] if t in models else restore(t, device)
                teacher.dtype = torch.bfloat16 if device == "cuda" else torch.float32
                va, _ = evaluate(teacher, data, data.valid, r["context"])
                soft[t] = soft_targets(teacher, data, r["context"])
                print(f"teacher {t}: valid {va:.4f}, soft targets in {time.time() - t1:.0f} s", flush=True)
            s = soft[t]
        # "until": seconds after the start of the process at which the run must be over
        models[r["name"]] = run(r, data, out, log, s, begin + r["until"] if "until" in r else None)


if __name__ == "__main__":
    main()
