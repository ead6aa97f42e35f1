"""Steered answers beside SAELens on transformer-lens: `generate` with a hook, one row at a time."""

from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from parity import quiet, record
from sae_lens import SAETransformerBridge

from igds_utils import tiny
from igds_utils.engine.generation import decode
from igds_utils.engine.lm import LM
from igds_utils.engine.sae import Feature
from igds_utils.engine.steering import Steering

REPOSITORY, NEW, SCALE = "decoderesearch/SAELens", 12, 3.0
FEATURES = [Feature(layer, index) for layer in range(tiny.LAYERS) for index in (3, 21, 40)]


def hook(h, hook, sae, index: int, first: int):
    """h' = h + scale * a_i(h) * d_i from the critical position on, by the SAE's own encoder."""
    h = h.clone()
    h[:, first:] += SCALE * sae.encode(h[:, first:])[..., index, None] * sae.W_dec[index]
    return h


def compare(architecture: str) -> tuple[int, int, int]:
    """Steered rows, those whose tokens are the same, and those that steering changed."""
    lm = LM(tiny.model(architecture), tiny.tokenizer(), architecture)
    saes = {layer: tiny.sae(seed=layer) for layer in range(tiny.LAYERS)}
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 20, (10,), generator=draw).tolist()
    texts = [torch.randint(2, 400, (n,), generator=draw).tolist() for n in lengths]
    rows = [(s, feature) for s in range(len(texts)) for feature in FEATURES]
    ours = decode(lm, texts, rows, NEW, Steering(saes, FEATURES, scale=SCALE))
    plain = decode(lm, texts, [(s, None) for s, _ in rows], NEW)
    with TemporaryDirectory() as work, quiet():
        tiny.save_model(architecture, 0, Path(work))
        bridge = SAETransformerBridge.boot_transformers(work)
    same = 0
    how = dict(max_new_tokens=NEW, do_sample=False, use_past_kv_cache=False, stop_at_eos=False)
    for (s, feature), tokens in zip(rows, ours, strict=True):
        own = {"sae": saes[feature.layer], "index": feature.index, "first": len(texts[s]) - 1}
        name = f"blocks.{feature.layer}.hook_out"
        with torch.inference_mode(), bridge.hooks(fwd_hooks=[(name, partial(hook, **own))]):
            ids = torch.tensor([texts[s]])
            made = bridge.generate(ids, return_type="tokens", verbose=False, **how)
        theirs = made[0, len(texts[s]) :].tolist()
        end = lm.tokenizer.eos_token_id
        same += tokens == (theirs[: theirs.index(end)] if end in theirs else theirs)
    return len(rows), same, sum(a != b for a, b in zip(ours, plain, strict=True))


if __name__ == "__main__":
    source = "SAETransformerBridge.generate", REPOSITORY, f"package {version('sae-lens')}"
    for architecture in ("llama", "gemma2", "qwen3"):
        compared, same, _ = compare(architecture)
        record(*source, f"steered answers of a tiny {architecture}", compared, same)
