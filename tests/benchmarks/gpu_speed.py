"""Speed and memory of the engine at the true sizes of its models, with random weights: nothing is fetched.

    python tests/benchmarks/gpu_speed.py --models smollm2-135m,gemma-2-2b,llama-3.1-8b --seconds 420 --out OUT
    python tests/benchmarks/gpu_speed.py --tiny --out tiny          # on a CPU: only that every row works

Models are made on the GPU in bf16 (Gemma-2-2B, Llama-3.1-8B, SmolLM2-135M), SAEs in fp32 in the true shapes, and asked
through the package's own functions. Beside them the public way: `generate` of transformers with a hook, and
HookedTransformer of transformer-lens. Random models never end an answer and depart from it at once, so decoding is
timed at its longest and drafts save nothing; what real weights save comes on top.

Each row is printed and stored (speed.json) as soon as it is known, so that a run that is cut off keeps the rest.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from igds_utils import tiny
from igds_utils.config.settings import SftConfig
from igds_utils.engine import activations, generation, losses, prompts
from igds_utils.engine.lm import GROUPED, LM, edited, last_hidden, residuals
from igds_utils.engine.prompts import Sample
from igds_utils.engine.sae import Feature, FeatureSet
from igds_utils.engine.steering import Steering
from igds_utils.identification import intervention
from igds_utils.tasks.examples import Example
from igds_utils.training import sft

SHARED = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}  # the tiny tokenizer's
MODELS: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "config": LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, max_position_embeddings=8192, rope_theta=100_000.0, tie_word_embeddings=True,
            **SHARED,
        ),
        "d_sae": 4608, "layers": [6, 12, 18, 24], "sft_batch": 64,
    },
    "gemma-2-2b": {
        "config": Gemma2Config(
            vocab_size=256000, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8,
            num_key_value_heads=4, head_dim=256, query_pre_attn_scalar=256, **SHARED,
        ),
        "d_sae": 16384, "layers": [5, 12, 19], "sft_batch": 8,
    },
    "llama-3.1-8b": {
        "config": LlamaConfig(
            vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=8, max_position_embeddings=8192, rope_theta=500_000.0, tie_word_embeddings=False,
            **SHARED,
        ),
        "d_sae": 32768, "layers": [8, 15, 23], "sft_batch": 0,  # the state of its training, 128 GB, fits on no one GPU
    },
}  # fmt: skip
TINY = {
    "tiny-llama": {"config": tiny.config("llama", 400), "d_sae": 64, "layers": [1, 2], "sft_batch": 4},
    "tiny-gemma2": {"config": tiny.config("gemma2", 400), "d_sae": 64, "layers": [1, 2], "sft_batch": 4},
}
WORDS = "apples gives twelve left sold then friend how many she box price each more half twice total now".split()


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    texts: int = 384  # of a pool
    prompt: int = 200  # tokens, about
    target: int = 40
    samples: int = 16  # of the causal filter
    features: int = 32
    new: int = 64  # tokens that a row generates
    rows: tuple[int, ...] = (64, 256, 1024)
    batch_tokens: tuple[int, ...] = (2048, 32768)
    steps: int = 4  # of training


SMALL = Sizes(12, 30, 8, 3, 4, 6, (4, 8), (256, 1024), 2)


class RandomSaes:
    """SAEs of one shape on the residual stream, as `engine.sae.Saes` gives them; all stay in memory."""

    def __init__(self, layers: Sequence[int], width: int, d_sae: int, device: torch.device):
        self.layers, self.device = list(layers), device
        self._made = {layer: self._random(layer, width, d_sae) for layer in layers}

    def __getitem__(self, layer: int):
        return self._made[layer]

    def _random(self, layer: int, width: int, d_sae: int):
        from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

        draw = torch.Generator(self.device).manual_seed(layer)
        made = JumpReLUSAE(JumpReLUSAEConfig(d_in=width, d_sae=d_sae, device=str(self.device)))
        with torch.no_grad():
            made.W_enc.copy_(torch.randn(width, d_sae, generator=draw, device=self.device) / width**0.5)
            made.W_dec.copy_(torch.nn.functional.normalize(made.W_enc.T, dim=-1))
        return made.requires_grad_(False).eval()

    def set_thresholds(self, residual: dict[int, torch.Tensor], share: float = 0.02) -> None:
        """Let about this share of the features fire at a critical position."""
        for layer, h in residual.items():
            sae = self._made[layer]
            pre = h.to(self.device) @ sae.W_enc
            sae.threshold.data.fill_(float(pre.flatten().float().kthvalue(int((1 - share) * pre.numel())).values))


class Report:
    def __init__(self, folder: Path, seconds: float):
        self.rows: list[dict[str, Any]] = []
        self.folder, self.started, self.seconds = folder, time.perf_counter(), seconds
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, model: str, what: str, value: float, unit: str, **more: Any) -> None:
        self.rows.append({"model": model, "what": what, "value": value, "unit": unit, **more})
        beside = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in more.items())
        print(f"{model:>13} | {what:<52} | {value:>12,.3g} {unit:<10} | {beside}", flush=True)
        (self.folder / "speed.json").write_text(json.dumps(self.rows, indent=1, default=str), encoding="utf8")

    def left(self) -> float:
        return self.seconds - (time.perf_counter() - self.started)


def sync() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(call: Callable[[], Any], repeats: int = 1, warm: int = 1) -> float:
    """Median wall seconds of a call that ends when the device is done."""
    taken = []
    for number in range(warm + repeats):
        sync()
        start = time.perf_counter()
        call()
        sync()
        if number >= warm:
            taken.append(time.perf_counter() - start)
    return median(taken)


@contextmanager
def peak(found: dict[str, float]):
    """The largest memory of the GPU while the context is open, in GB."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield
    found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0


def ceilings(report: Report, device: torch.device) -> None:
    """The two rates that all others are to be held against."""
    side = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = timed(lambda: [a @ b for _ in range(10)], repeats=3) / 10
    report.add("device", f"bf16 matrix product of side {side}", 2 * side**3 / seconds / 1e12, "TFLOP/s")
    source = torch.empty((1 << 31 if device.type == "cuda" else 1 << 22), dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    seconds = timed(lambda: [target.copy_(source) for _ in range(5)], repeats=3) / 5
    report.add("device", "copy, bytes read and written", 2 * source.numel() / seconds / 1e12, "TB/s")


def build(name: str, spec: dict[str, Any], device: torch.device, dtype: torch.dtype) -> LM:
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(spec["config"], dtype=dtype)
    return LM(model.requires_grad_(False).eval(), tiny.tokenizer(), name)


def forward_flops(lm: LM, tokens: int, length: int) -> float:
    """Of the blocks alone, head left out: 2 a weight and token, and causal attention over half of the length."""
    blocks = sum(p.numel() for p in lm.blocks.parameters())
    return tokens * (2 * blocks + 2 * lm.n_layers * length * lm.width)


def short_prompts(report: Report, lm: LM, saes: RandomSaes, spec: dict, sizes: Sizes) -> None:
    """FRS against Loss where prompts are a third of the tokens."""
    third = replace(sizes, prompt=max(6, sizes.prompt * 2 // 5), target=max(12, sizes.prompt * 4 // 5))
    texts, pairs, _ = texts_and_samples(lm, third)
    layer, tokens = spec["layers"][len(spec["layers"]) // 2], sizes.batch_tokens[-1]

    def frs() -> None:
        activations.feature_activations(
            activations.critical_residuals(lm, texts, [layer], tokens), saes, [Feature(layer, 7)]
        )

    seconds = timed(frs), timed(lambda: losses.target_losses(lm, pairs, tokens))
    share = sum(n for _, n in pairs) / sum(len(i) for i, _ in pairs)
    report.add(
        lm.name, f"FRS / Loss, {len(texts)} samples of short prompts", seconds[0] / seconds[1], "", prompt_share=share
    )


def texts_and_samples(lm: LM, sizes: Sizes) -> tuple[list[str], list[losses.Pair], list[Sample]]:
    """Prompts of random words that end in the critical colon, their pairs with a target, and the filter's samples."""
    draw, per_word = Random(0), len(prompts.encode(lm.tokenizer, " ".join(WORDS * 4))) / (4 * len(WORDS))

    def words(tokens: int) -> str:
        mean = max(2, round(tokens / per_word))
        return " ".join(draw.choices(WORDS, k=draw.randint(mean * 3 // 5, mean * 7 // 5)))

    texts = [f"{words(sizes.prompt)}\nSolution:" for _ in range(sizes.texts)]
    targets = [words(sizes.target) for _ in texts]
    pairs = prompts.encode_pairs(lm.tokenizer, texts, [f" {own}" for own in targets])
    samples = [
        Sample(f"s{i}", ids[:n], ids, Example(f"s{i}", {"text": texts[i]}, targets[i], (targets[i],)))
        for i, (ids, n) in enumerate(pairs[: sizes.samples])
    ]
    return texts, pairs, samples


def reading(report: Report, lm: LM, saes: RandomSaes, spec: dict, sizes: Sizes, texts, pairs) -> None:
    """Bare forward passes, FRS and Loss."""
    name, layer = lm.name, spec["layers"][len(spec["layers"]) // 2]
    length, tokens = (256, sizes.batch_tokens[-1]) if torch.cuda.is_available() else (32, 256)
    ids = torch.randint(2, 400, (max(1, tokens // length), length), device=lm.device)

    def bare() -> None:
        with torch.inference_mode():
            last_hidden(lm, input_ids=ids, use_cache=False)

    seconds, flops = timed(bare, repeats=3), forward_flops(lm, ids.numel(), length)
    report.add(
        name, f"bare forward pass, {ids.numel():,} tokens", ids.numel() / seconds, "tokens/s",
        teraflops=flops / seconds / 1e12,
    )  # fmt: skip
    part = timed(lambda: residuals(lm, [layer], input_ids=ids), repeats=3)
    report.add(name, f"the same up to layer {layer}", ids.numel() / part, "tokens/s")
    encode = timed(
        lambda: [(prompts.critical_position(lm.tokenizer, t, t), prompts.encode(lm.tokenizer, t)) for t in texts]
    )
    report.add(name, "tokenizing prompts alone (tiny tokenizer)", encode, "s")
    features = [Feature(layer, 7)]
    for batch_tokens in sizes.batch_tokens:

        def frs(batch_tokens: int = batch_tokens) -> None:
            found = activations.critical_residuals(lm, texts, [layer], batch_tokens)
            activations.feature_activations(found, saes, features)

        more: dict[str, Any] = {}
        with peak(more):
            seconds = {
                "frs": timed(frs),
                "loss": timed(lambda batch_tokens=batch_tokens: losses.target_losses(lm, pairs, batch_tokens)),
            }
        prompt, all_of = sum(n for _, n in pairs), sum(len(i) for i, _ in pairs)
        what = f"{len(texts)} samples, batch_tokens {batch_tokens}"
        report.add(name, f"FRS, {what}", prompt / seconds["frs"], "tokens/s", seconds=seconds["frs"], **more)
        report.add(name, f"Loss, {what}", all_of / seconds["loss"], "tokens/s", seconds=seconds["loss"])
        report.add(name, f"FRS / Loss, {what}", seconds["frs"] / seconds["loss"], "", prompt_share=prompt / all_of)


def firing(lm: LM, saes: RandomSaes, sizes: Sizes, texts: Sequence[str]) -> list[Feature]:
    """Features of several layers that fire at the critical position of most prompts."""
    residual = activations.critical_residuals(lm, texts[: sizes.samples], saes.layers, sizes.batch_tokens[-1])
    saes.set_thresholds(residual)
    each, found = -(-sizes.features // len(saes.layers)), []
    for layer, h in residual.items():
        a = saes[layer].encode(h.to(saes.device))
        best = ((a > 0).float().mean(0) * 1e6 + a.mean(0)).topk(each).indices.tolist()
        found += [Feature(layer, index) for index in best]
    return found[: sizes.features]


def decoding(report: Report, lm: LM, saes: RandomSaes, spec: dict, sizes: Sizes, samples, features) -> None:
    """Merged decoding by rows, the causal filter, and what the host does meanwhile."""
    ids = [s.prompt for s in samples]
    steering = Steering(saes, features)
    every = [(s, f) for f in features for s in range(len(ids))]
    for rows in sizes.rows:
        chosen, more = [every[i % len(every)] for i in range(rows)], {}
        with peak(more):
            seconds = timed(lambda chosen=chosen: generation.decode(lm, ids, chosen, sizes.new, steering))
        report.add(
            lm.name, f"steered decoding, {rows} rows", rows * sizes.new / seconds, "tokens/s",
            ms_a_step=1e3 * seconds / sizes.new, **more,
        )  # fmt: skip
    plain_attention(report, lm, ids, every, steering, sizes)
    score = lambda outputs, examples: [float(len(o)) for o in outputs]  # noqa: E731

    def causal_filter() -> None:
        intervention.generated_effects(
            lm, steering, features, samples, score, sizes.new, batch_tokens=sizes.batch_tokens[-1]
        )

    more = {}
    with peak(more):
        seconds = timed(causal_filter, warm=0)
    n = len(features) * len(samples)
    report.add(
        lm.name, f"causal filter, {len(features)} features x {len(samples)} samples", n * sizes.new / seconds,
        "tokens/s", seconds=seconds, rows_a_second=n / seconds, **more,
    )  # fmt: skip
    if torch.cuda.is_available():
        host(report, lm, ids, every[: sizes.rows[1]], steering)


def plain_attention(report: Report, lm: LM, ids, every, steering: Steering, sizes: Sizes) -> None:
    """The same decoding in transformers' own attention, with masks that it makes in every step."""
    rows, capped = [every[i % len(every)] for i in range(sizes.rows[-1])], lm.model.config
    own = "eager" if getattr(capped, "attn_logit_softcapping", None) else "sdpa"
    lm.model.set_attn_implementation(own)
    made, generation.step_mask = generation.step_mask, lambda _lm, mask: mask
    try:
        seconds = timed(lambda: generation.decode(lm, ids, rows, sizes.new, steering))
    finally:
        generation.step_mask = made
        lm.model.set_attn_implementation(GROUPED)
    report.add(
        lm.name, f"steered decoding, {len(rows)} rows, {own} of transformers",
        len(rows) * sizes.new / seconds, "tokens/s", ms_a_step=1e3 * seconds / sizes.new,
    )  # fmt: skip


def host(report: Report, lm: LM, ids, rows, steering: Steering, new: int = 8) -> None:
    """How busy the GPU is in a decoding step, how many kernels a step has, and where the host waits for it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        start = time.perf_counter()
        generation.decode(lm, ids, rows, new, steering)
        sync()
        wall = time.perf_counter() - start
    kernels = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(e.self_device_time_total for e in kernels) / 1e6
    report.add(
        lm.name,
        f"GPU busy, {len(rows)} rows, {new} tokens (profiled)",
        busy / wall,
        "",
        kernels_a_step=len(kernels) / new,
    )
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            generation.decode(lm, ids, rows, new, steering)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))
    report.add(
        lm.name, f"waits for the GPU, {new} tokens", sum(places.values()), "", places=dict(places.most_common(8))
    )


def public_way(report: Report, lm: LM, saes: RandomSaes, sizes: Sizes, samples, features) -> None:
    """transformers' `generate` with a hook: one feature, all samples in a batch, as public steering scripts do it."""
    ids, feature = [s.prompt for s in samples], features[0]
    known = FeatureSet(saes[feature.layer], [feature.index])

    def amplify(h: torch.Tensor) -> torch.Tensor:
        h = h.clone()
        h[:, -1] += (known.encode(h[:, -1]) * known.directions[0]).to(h)
        return h

    inputs = lm.tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt").to(lm.device)

    def generate() -> torch.Tensor:
        with edited(lm, {feature.layer: amplify}), torch.inference_mode():
            return lm.model.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False,
                max_new_tokens=sizes.new, min_new_tokens=sizes.new,
            )  # fmt: skip

    seconds, width = timed(generate), inputs["input_ids"].shape[1]
    theirs = generate()[:, width:].tolist()
    ours = generation.decode(lm, ids, [(s, feature) for s in range(len(ids))], sizes.new, Steering(saes, [feature]))
    same = sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)
    agree = sum(
        next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(b))
        for a, b in zip(ours, theirs, strict=True)
    )
    report.add(
        lm.name, f"generate with a hook, {len(ids)} rows", len(ids) * sizes.new / seconds, "tokens/s",
        seconds=seconds, same_outputs=same, tokens_until_they_differ=agree / len(ours),
    )  # fmt: skip


def transformer_lens(report: Report, lm: LM, saes: RandomSaes, sizes: Sizes, samples, features) -> None:
    """The same with HookedTransformer: random weights of the same shape, prompts cut to one length (it pads poorly)."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    c, feature = lm.model.config, features[0]
    d_head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    cfg = HookedTransformerConfig(
        n_layers=c.num_hidden_layers, d_model=c.hidden_size, d_mlp=c.intermediate_size, n_heads=c.num_attention_heads,
        n_key_value_heads=c.num_key_value_heads, d_head=d_head,
        d_vocab=c.vocab_size, n_ctx=1024, act_fn="silu", normalization_type="RMS", positional_embedding_type="rotary",
        rotary_dim=d_head, gated_mlp=True, final_rms=True,
        device=str(lm.device), dtype=lm.model.dtype, init_weights=True, default_prepend_bos=False, seed=0,
    )  # fmt: skip
    more: dict[str, Any] = {}
    with peak(more):
        model = HookedTransformer(cfg).eval()
        known = FeatureSet(saes[feature.layer], [feature.index])
        shortest = min(len(s.prompt) for s in samples)
        tokens = torch.tensor([s.prompt[-shortest:] for s in samples], device=lm.device)

        def hook(h: torch.Tensor, hook: Any) -> torch.Tensor:
            h[:, -1] += (known.encode(h[:, -1]) * known.directions[0]).to(h)
            return h

        def generate() -> None:
            with torch.inference_mode(), model.hooks([(f"blocks.{feature.layer}.hook_resid_post", hook)]):
                model.generate(
                    tokens, max_new_tokens=sizes.new, do_sample=False, stop_at_eos=False, return_type="tokens",
                    verbose=False,
                )  # fmt: skip

        seconds = timed(generate)
        cached = timed(lambda: model.run_with_cache(tokens, names_filter=[f"blocks.{feature.layer}.hook_resid_post"]))
    report.add(
        lm.name, f"transformer-lens generate with a hook, {len(tokens)} rows", len(tokens) * sizes.new / seconds,
        "tokens/s", seconds=seconds, **more,
    )  # fmt: skip
    report.add(
        lm.name,
        "transformer-lens run_with_cache of one layer",
        tokens.numel() / cached,
        "tokens/s",
        tokens=tokens.numel(),
    )


def training(report: Report, lm: LM, spec: dict, sizes: Sizes, pairs) -> None:
    """Optimizer steps of `sft.train` (TRL): fp32 weights, bf16 products."""
    for tokens in sizes.batch_tokens:
        config = SftConfig(lr=1e-5, global_batch=spec["sft_batch"], device_tokens=tokens, max_length=1024)
        need = config.global_batch * sizes.steps
        some = [pairs[i % len(pairs)] for i in range(need)]
        more: dict[str, Any] = {}
        lm.model.requires_grad_(True)
        with peak(more), tempfile.TemporaryDirectory() as folder:
            log = sft.train(lm, some, config, seed=0, workdir=Path(folder))
        lm.model.requires_grad_(False)
        last = log.iloc[1:]  # the first step compiles and allocates
        report.add(
            lm.name, f"SFT, global batch {config.global_batch}, {tokens} tokens at once",
            float(last["tokens"].sum() / last["seconds"].sum()), "tokens/s",
            ms_a_step=1e3 * float(last["seconds"].mean()),
            first_step_s=float(log["seconds"].iloc[0]), loss=float(log["loss"].iloc[-1]), **more,
        )  # fmt: skip


def check(
    report: Report, name: str, spec: dict[str, Any], sizes: Sizes, device: torch.device, only: Sequence[str]
) -> None:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    start, more = time.perf_counter(), {}
    with peak(more):
        lm = build(name, spec, device, dtype)
        saes = RandomSaes(spec["layers"], lm.width, spec["d_sae"], device)
        sync()
    report.add(
        name, "made on the device, with SAEs of some layers", time.perf_counter() - start, "s",
        attention=lm.model.config._attn_implementation, parameters=lm.model.num_parameters(), **more,
    )  # fmt: skip
    texts, pairs, samples = texts_and_samples(lm, sizes)
    features = firing(lm, saes, sizes, texts)
    rows = {
        "reading": (30, lambda: reading(report, lm, saes, spec, sizes, texts, pairs)),
        "short": (10, lambda: short_prompts(report, lm, saes, spec, sizes)),
        "decoding": (40, lambda: decoding(report, lm, saes, spec, sizes, samples, features)),
        "training": (30, lambda: training(report, lm, spec, sizes, pairs) if spec["sft_batch"] else None),
        "public": (20, lambda: public_way(report, lm, saes, sizes, samples, features)),
        "lens": (30, lambda: transformer_lens(report, lm, saes, sizes, samples, features)),
    }
    for what, (needed, row) in rows.items():
        if what not in only:
            continue
        if report.left() < needed:
            report.add(name, "left out: no time", report.left(), "s left")
            continue
        try:
            row()
        except Exception as error:  # one row that fails must not cost the others
            report.add(name, f"FAILED: {type(error).__name__}", float("nan"), "", said=str(error)[:300])
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="smollm2-135m,gemma-2-2b,llama-3.1-8b")
    parser.add_argument("--only", default="reading,short,decoding,training,public,lens", help="groups of rows")
    parser.add_argument("--texts", type=int, default=384)
    parser.add_argument("--new", type=int, default=64, help="tokens that a row generates")
    parser.add_argument("--seconds", type=float, default=420, help="no row is begun that would end later")
    parser.add_argument("--out", default=".", help="folder of speed.json")
    parser.add_argument("--tiny", action="store_true", help="tiny models: only that every row works")
    options = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    report = Report(Path(options.out), options.seconds)
    known, sizes = (TINY, SMALL) if options.tiny else (MODELS, Sizes(options.texts, new=options.new))
    report.add(
        "device", "torch sees", float(torch.cuda.device_count()), "GPUs", torch=torch.__version__,
        name=torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
    )  # fmt: skip
    ceilings(report, device)
    for name in known if options.tiny else options.models.split(","):
        check(report, name, known[name], sizes, device, options.only.split(","))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    print(f"done in {time.perf_counter() - report.started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
