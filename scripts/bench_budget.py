"""Compares the estimator with what needs no search, within minutes: a plain network, an SVM, a forest.

All learn from the same 4,000 images (digits: 1,347). The plain network trains for the whole time, on all of
them, with the estimator's crops; the estimator holds some out to test on. Both run at the same time, on a
core each, or with --alone after one another on all cores. A row a fit is added to --out; what it holds is not
repeated. --cifar is an .npz of `x_train`, `y_train`, `x_test`, `y_test`; without it no colours are fitted.
"""

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import nn

import nas
from nas.data import datasets

COUNT, DIGITS, SIDE, BATCH = 4000, 1347, 28, 64
WIDTH = {1: 16, 3: 32}
"""Of the plain network, by minutes: what its time is enough for."""
Answers = tuple[np.ndarray, dict]


def load(name: str, seed: int, cifar: Path | None) -> tuple[np.ndarray, ...]:
    if name == "cifar":
        found = np.load(cifar)
        x, y, x_test, y_test = (found[k] for k in ("x_train", "y_train", "x_test", "y_test"))
    else:
        s = getattr(datasets, name)()
        x, y, x_test, y_test = (np.array(a) for a in (s.x_train, s.y_train, s.x_test, s.y_test))
    order = np.random.default_rng(seed).permutation(len(x))
    if name == "digits":  # which have no test images of their own
        x = np.stack([Image.fromarray(i).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for i in x])
        return x[order[:DIGITS]], y[order[:DIGITS]], x[order[DIGITS:]], y[order[DIGITS:]]
    return x[order[:COUNT]], y[order[:COUNT]], x_test, y_test


def network(channels: int, width: int) -> nn.Module:
    """Three stages of two convolutions."""
    layers: list[nn.Module] = []
    for stage, wide in enumerate(width * 2**s for s in range(3)):
        layers += [nn.MaxPool2d(2)] if stage else []
        for _ in range(2):
            layers += [nn.Conv2d(channels, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
            channels = wide
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def reference_ms() -> float:
    """How fast the machine is just now: a step of the plain network on one thread, in milliseconds."""
    net, times, threads = network(1, 16), [], torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(12):
        began = time.perf_counter()
        net(torch.ones(BATCH, 1, SIDE, SIDE)).sum().backward()
        times.append(1e3 * (time.perf_counter() - began))
    torch.set_num_threads(threads)
    return round(float(np.median(times)), 1)


def plain(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, minutes: int, seed: int) -> Answers:
    """Trains for the whole time; the cosine follows it."""
    began, end_s, rate = time.monotonic(), 60 * minutes - 1, 0.05
    torch.manual_seed(seed)
    maps = [torch.from_numpy(i).float().reshape(*i.shape[:3], -1).permute(0, 3, 1, 2) for i in (x, x_test)]
    mean, std = maps[0].mean((0, 2, 3), keepdim=True), maps[0].std((0, 2, 3), keepdim=True)
    images, tested, labels = (maps[0] - mean) / std, (maps[1] - mean) / std, torch.from_numpy(y).long()
    side, border, steps = x.shape[1], 4 if x.shape[1] == 32 else 2, 0
    net = network(images.shape[1], WIDTH[minutes]).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(net.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    loss = nn.CrossEntropyLoss(label_smoothing=0.05)
    while (share := (time.monotonic() - began) / end_s) < 1:
        if steps % (len(y) // BATCH) == 0:
            order = iter(torch.randperm(len(y)).split(BATCH))
        part = next(order)
        padded = nn.functional.pad(images[part], [border] * 4)
        at = torch.randint(2 * border + 1, (len(part), 2)).tolist()
        batch = torch.stack([i[:, r : r + side, c : c + side] for i, (r, c) in zip(padded, at, strict=True)])
        optimiser.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * share)) / 2
        optimiser.zero_grad()
        loss(net(batch.contiguous(memory_format=torch.channels_last)), labels[part]).backward()
        optimiser.step()
        steps += 1
    with torch.no_grad():
        told = torch.cat([net.eval()(i).argmax(1) for i in tested.split(500)])
    return told.numpy(), {"epochs": round(steps * BATCH / len(y), 1), "width": WIDTH[minutes]}


def estimator(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, minutes: int, seed: int) -> Answers:
    made = nas.ImageClassifier(f"{minutes}m", random_state=seed).fit(x, y)
    result = made.result_
    told = {"epochs": result.metrics["retrain_epochs"], "trials": len(result.history)}
    return made.predict(x_test), told | {
        "size": dict(result.space.settings),
        "params": result.metrics["params"],
    }


def classical(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, who: str, seed: int) -> Answers:
    svm = make_pipeline(StandardScaler(), SVC(C=10))
    model = svm if who == "SVM" else RandomForestClassifier(500, random_state=seed)
    return model.fit(x.reshape(len(x), -1), y).predict(x_test.reshape(len(x_test), -1)), {}


def fit(who: str, data: str, minutes: int, seed: int, cifar: Path | None) -> dict:
    (x, y, x_test, y_test), speed = load(data, seed, cifar), reference_ms()
    began = time.monotonic()
    if who in ("SVM", "forest"):
        answers, told = classical(x, y, x_test, who, seed)
    else:
        answers, told = {"estimator": estimator, "plain network": plain}[who](x, y, x_test, minutes, seed)
    row = {"who": who, "data": data, "minutes": minutes, "seed": seed, "reference_ms": speed}
    return row | {"accuracy": float(np.mean(answers == y_test)), "seconds": time.monotonic() - began} | told


def summary(rows: list[dict]) -> None:
    for data, minutes in sorted({(row["data"], row["minutes"]) for row in rows}):
        told = f"{data}, {minutes} min:"
        for who in ("estimator", "plain network", "SVM", "forest"):
            key = (who, data, 1 if who in ("SVM", "forest") else minutes)
            found = [100 * r["accuracy"] for r in rows if (r["who"], r["data"], r["minutes"]) == key]
            told += f"  {who} {np.mean(found):.2f} ± {np.std(found):.2f} ({len(found)})" if found else ""
        print(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/budget/rows.jsonl"))
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--fit", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fit:
        print(json.dumps(fit(*args.fit, args.cifar)))
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {(r["who"], r["data"], r["minutes"], r["seed"]) for r in rows}
    cores, own = sorted(os.sched_getaffinity(0)), (["--cifar", args.cifar] if args.cifar else [])
    names = ("fashion_mnist", "digits", *(["cifar"] if args.cifar else []))
    pairs = [("estimator",), ("plain network",)] if args.alone else [("estimator", "plain network")]
    fits = [(s, m, d, pairs) for s, m, d in itertools.product(range(args.seeds), (1, 3), names)]
    fits += [(s, 1, d, [("SVM", "forest")]) for s, d in itertools.product(range(args.seeds), names)]
    for seed, minutes, data, together in fits:
        for pair in together:
            begun = []
            for core, who in zip(cores, pair, strict=False):
                if (key := (who, data, minutes, seed)) in done:
                    continue
                bound = ",".join(map(str, cores if len(pair) == 1 else [core]))
                command = ["taskset", "-c", bound, sys.executable, __file__, "--fit", json.dumps(key), *own]
                begun.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            for process in begun:
                line = process.communicate()[0].strip()
                if process.returncode:
                    raise SystemExit(f"a fit failed: {process.args}")
                print(line, flush=True)
                with args.out.open("a") as file:
                    file.write(line + "\n")
    summary([json.loads(line) for line in args.out.read_text().splitlines()])


if __name__ == "__main__":
    main()
