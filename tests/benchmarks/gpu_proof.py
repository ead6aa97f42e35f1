"""Does a GPU compute in fp32 and bf16 what a CPU computes in fp32? The real model, real dialogues, few of them.

    python tests/benchmarks/gpu_proof.py --preset gpu --task summarization --out OUT      # about two minutes

Reference: the same weights in fp32 on the CPU of the same machine. Beside it fp32 on the GPU, where answers must be
equal, and bf16, where rounding may turn a near-tie and what counts is how far apart the numbers are. Without a GPU it
compares the CPU with itself, which only shows that the script runs. Prints a table and writes proof.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from igds_utils.config.settings import SftConfig
from igds_utils.core.experiment import open_run
from igds_utils.engine import activations, generation, losses
from igds_utils.engine.lm import LM
from igds_utils.engine.sae import Saes
from igds_utils.engine.steering import Steering
from igds_utils.identification import intervention, recall
from igds_utils.training import sft

GPU = torch.cuda.is_available()
ROWS: list[dict] = []


def say(what: str, value: float, bound: str, passed: bool | None, **more) -> None:
    """One row; passed: None where nothing is required."""
    ROWS.append({"what": what, "value": value, "bound": bound, "passed": passed, **more})
    mark = {True: "passed", False: "FAILED", None: "      "}[passed]
    print(f"{mark} | {what:<66} | {value:>10.3g} | {bound:<10} | {more or ''}", flush=True)


def on(lm: LM, device: str, dtype: torch.dtype) -> LM:
    """The same weights elsewhere, in the attention that the package takes there."""
    model = copy.deepcopy(lm.model).to(device=device, dtype=dtype).eval()
    model.set_attn_implementation("sdpa")
    return LM(model, lm.tokenizer, lm.name)


def relative(found: torch.Tensor, reference: torch.Tensor) -> float:
    return float((found.double() - reference.double()).norm() / reference.double().norm())


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def common(a: list[list[int]], b: list[list[int]]) -> tuple[float, float]:
    """Share of equal answers, and of tokens before the first that differs."""
    same = sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
    before = [
        next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), min(len(x), len(y)))
        for x, y in zip(a, b, strict=True)
    ]
    return same, sum(before) / max(1, sum(map(len, b)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="gpu")
    parser.add_argument("--task", default="summarization")
    parser.add_argument("--out", default=".")
    parser.add_argument("--only", default="training,answers", help="what is compared beside readings")
    parser.add_argument("--few", action="store_true", help="as little as shows that it runs")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="FIELD=VALUE")
    options = parser.parse_args()
    import yaml

    changes = {f: yaml.safe_load(v) for f, _, v in (c.partition("=") for c in options.changes)}
    n_prompts, n_samples, n_features, new, steps = (12, 2, 2, 8, 2) if options.few else (64, 8, 6, 32, 4)
    start = time.perf_counter()
    run = open_run(options.preset, tasks=[options.task], overrides=changes, results=tempfile.mkdtemp())
    task, config = options.task, run.config(options.task)
    base = run.lm  # on the GPU if there is one, in the preset's precision
    clock = time.perf_counter() - start
    say("seconds until the model is there", clock, "", None, dtype=str(base.model.dtype), device=str(base.device))
    device = "cuda" if GPU else "cpu"
    cpu = on(base, "cpu", torch.float32)
    machines = {"fp32": on(base, device, torch.float32), "bf16": on(base, device, torch.bfloat16)}
    say(
        "attention on the CPU and on the device",
        0,
        "",
        None,
        cpu=cpu.model.config._attn_implementation,
        device=machines["bf16"].model.config._attn_implementation,
    )

    texts = run.prompts(task, "prior")[:n_prompts]
    saes = Saes(run.preset.chosen.saes, base.n_layers, base.width, "cpu")
    reference = activations.critical_residuals(cpu, texts, saes.layers)
    table = recall.frequency_recall(reference, saes, run.preset.recall.tau)
    features = recall.candidates(table)
    scores = activations.feature_activations(reference, saes, features[:1])[:, 0].numpy()
    for name, lm in machines.items():
        own = Saes(run.preset.chosen.saes, base.n_layers, base.width, lm.device)
        found = activations.critical_residuals(lm, texts, own.layers, 32768)
        for layer in own.layers:
            error, bound = relative(found[layer], reference[layer]), 1e-4 if name == "fp32" else 3e-2
            say(f"{name}: residual stream after layer {layer}, relative error", error, f"< {bound:g}", error < bound)
        again = recall.candidates(recall.frequency_recall(found, own, run.preset.recall.tau))
        jaccard = len({*again} & {*features}) / max(1, len({*again} | {*features}))
        say(
            f"{name}: recalled features, Jaccard index of {len(features)} and {len(again)}",
            jaccard,
            "> 0.9",
            jaccard > 0.9,
        )
        rho = spearman(activations.feature_activations(found, own, features[:1])[:, 0].numpy(), scores)
        say(f"{name}: rank correlation of FRS", rho, "> 0.9", rho > 0.9)

    pool = run.examples(task, "pool")[:n_prompts]
    pairs = run.training_pairs(run.training_records(task, pool))
    expected = losses.target_losses(cpu, pairs)
    for name, lm in machines.items():
        apart = float(np.abs(losses.target_losses(lm, pairs, 32768) - expected).max())
        bound = 1e-3 if name == "fp32" else 0.1
        say(f"{name}: target loss, largest difference in nats", apart, f"< {bound:g}", apart < bound)

    if "training" in options.only:
        training(cpu, lambda: on(base, device, torch.float32), pairs, config.sft.max_length, steps)
    if "answers" in options.only:
        samples = run.samples(task, [e.id for e in run.examples(task, "validation")[:n_samples]])
        answers(run, {"cpu": cpu, **machines}, samples, features[:n_features], run.task(task).stops, new)

    if GPU:
        say("largest memory of the GPU, GB", torch.cuda.max_memory_allocated() / 1e9, "", None)
    failed = sum(row["passed"] is False for row in ROWS)
    Path(options.out).mkdir(parents=True, exist_ok=True)
    Path(options.out, "proof.json").write_text(json.dumps(ROWS, indent=1, default=str), encoding="utf8")
    print(f"{len(ROWS)} rows, {failed} failed, {time.perf_counter() - start:.0f} s", flush=True)


def answers(run, lms: dict[str, LM], samples, some: list, stops, new: int) -> None:
    """Steered answers of each machine against the CPU's, in a batch and alone, and amplified by nothing."""
    ids = [s.prompt for s in samples]
    rows = [(s, f) for s in range(len(ids)) for f in (None, *some)]
    found = {}
    for name, lm in lms.items():
        own = Saes(run.preset.chosen.saes, lm.n_layers, lm.width, lm.device)
        steering = Steering(own, some)
        found[name] = generation.decode(lm, ids, rows, new, steering, stops)
        if name == "cpu":
            continue
        same, shared = common(found[name], found["cpu"])
        must = "= 1" if name == "fp32" else ""
        say(
            f"{name}: steered answers equal to the CPU's, of {len(rows)}",
            same,
            must,
            same > 0.98 if must else None,
            tokens_shared=round(shared, 3),
        )
        alone = [
            generation.decode(lm, [ids[s]], [(0, f)], new, steering, stops)[0] for s, f in rows[: 2 * len(some)]
        ]
        same, shared = common(found[name][: len(alone)], alone)
        say(
            f"{name}: equal to decoding one row at a time",
            same,
            must,
            same > 0.98 if must else None,
            tokens_shared=round(shared, 3),
        )
        originals = intervention.original_answers(lm, samples, new, stops)
        steered = [(s, f) for s, f in rows if f is not None]
        nothing = Steering(own, some, 0.0)
        still = generation.decode(lm, ids, steered, new, nothing, stops)
        moved = sum(a != originals[s] for a, (s, _) in zip(still, steered, strict=True)) / len(steered)
        say(
            f"{name}: answers changed by amplifying by nothing, the filter's noise",
            moved,
            "= 0" if must else "",
            moved < 0.02 if must else None,
        )


def training(cpu: LM, fresh, pairs: list, max_length: int, steps: int) -> None:
    """Two trainings on the device (bf16 products on fp32 weights), and a plain loop in fp32 on the CPU."""
    n = 16 * steps
    again = [pairs[i % len(pairs)] for i in range(n)]
    recipe = SftConfig(lr=1e-4, global_batch=16, device_tokens=32768, max_length=max_length)
    curves = {}
    for name in ("first", "second"):  # on the device: bf16 products on fp32 weights; the same call twice
        lm = fresh()
        with tempfile.TemporaryDirectory() as folder:
            curves[name] = sft.train(lm, again, recipe, 0, Path(folder))["loss"].to_numpy()
        del lm
    say(
        "training: two runs give the same losses, largest difference",
        float(np.abs(curves["first"] - curves["second"]).max()),
        "",
        None,
    )
    wanted = _loop(on(cpu, "cpu", torch.float32), again, recipe)  # a copy, which is trained
    apart = float(np.abs(curves["first"] - wanted).max())
    say(
        "training: losses against plain fp32 PyTorch on the CPU, largest difference",
        apart,
        "< 0.05",
        apart < 0.05,
        losses=[round(float(x), 3) for x in curves["first"]],
        plain=[round(x, 3) for x in wanted],
    )


def _loop(lm: LM, pairs: list[losses.Pair], config: SftConfig) -> list[float]:
    """Training as a plain loop: fp32, the schedule and clipping of `sft.train`."""
    from transformers import get_cosine_schedule_with_warmup

    from igds_utils.engine.batching import pad

    batches = sft.global_batches([len(ids) for ids, _ in pairs], config, seed=0)
    lm.model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=config.lr, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(config.warmup_ratio * len(batches)), len(batches))
    found = []
    for batch in batches:
        some = [pairs[i] for i in batch]
        inputs = pad([ids for ids, _ in some], lm.tokenizer.pad_token_id, "right", lm.device)
        each = losses.token_losses(lm.model, losses.target_labels(inputs["input_ids"], some), **inputs)
        optimizer.zero_grad()
        each.mean().backward()
        torch.nn.utils.clip_grad_norm_(lm.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        found.append(each.mean().item())
    return found


if __name__ == "__main__":
    main()
