"""The paper's SAEs in the formats of their authors, read from the hub in a box."""

import gc
import json
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from igds_utils.config.refs import HubRef, SaeConfig
from igds_utils.data.hub import SourceError
from igds_utils.engine import sae as module
from igds_utils.engine.activations import critical_residuals
from igds_utils.engine.loading import load_lm
from igds_utils.engine.sae import FeatureSet, Saes, directions
from igds_utils.identification.recall import frequency_recall

CANONICAL = {"name": "gemma-scope-2b-pt-res-canonical", "id": "layer_{layer}/width_16k/canonical"}
GEMMA = SaeConfig(source="release", **CANONICAL)
LLAMA = SaeConfig(source="release", name="llama_scope_lxr_8x")
QWEN = SaeConfig(source="release", name="qwen-scope-3-8b-base-w64k-l50")
# SAEs, and the model in the box that they belong to
FAMILIES = {
    "gemma": (GEMMA, "google/gemma-2-2b-it"),
    "llama": (LLAMA, "meta-llama/Llama-3.1-8B-Instruct"),
    "qwen": (QWEN, "Qwen/Qwen3-8B"),
}
PROMPTS = [f"Ann has {n} apples and buys {n + 3} more. How many?\nSolution:" for n in (2, 7, 11)]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """A model, its SAEs, and the residual stream at the critical positions of some prompts."""
    config, name = FAMILIES[request.param]
    lm = load_lm(HubRef(hub=name), "bfloat16")
    saes = Saes(config, lm.n_layers, lm.width)
    yield lm, saes, critical_residuals(lm, PROMPTS, saes.layers)
    saes.drop()


def test_influence_is_a_times_d_in_residual_units(family):
    lm, saes, residual = family
    assert saes.layers == list(range(lm.n_layers))
    sae, h = saes[1], residual[1]
    assert (sae.cfg.d_in, sae.cfg.metadata.hook_name) == (lm.width, "blocks.1.hook_resid_post")
    assert {parameter.dtype for parameter in sae.parameters()} == {torch.float32}
    z = sae.encode(h)
    some = [int(i) for i in (z > 0).all(0).nonzero().squeeze(-1)[:3]]
    assert some, "no feature fires on every prompt: the test shows nothing"
    d = directions(sae, torch.tensor(some))
    for column, index in enumerate(some):
        doubled = z.clone()
        doubled[:, index] *= 2
        added = sae.decode(doubled) - sae.decode(z)
        torch.testing.assert_close(added, z[:, index, None] * d[column], rtol=1e-3, atol=1e-5)
    features = FeatureSet(sae, some)
    torch.testing.assert_close(features.encode(h), z[:, some], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.directions, d)


@pytest.mark.parametrize("family", ["llama"], indirect=True)  # the format of the files plays no part
def test_recall_reads_all_layers_in_one_pass_with_one_sae_at_a_time(family, monkeypatch):
    lm, saes, _ = family
    saes.drop()
    gc.collect()
    alive, most, passes = weakref.WeakSet(), [], []
    read = module.load_release

    def counting(*args):
        gc.collect()
        most.append(len(alive))
        alive.add(sae := read(*args))
        return sae

    monkeypatch.setattr(module, "load_release", counting)
    handle = lm.blocks[0].register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        table = frequency_recall(critical_residuals(lm, PROMPTS, saes.layers), saes, tau=0.8)
    finally:
        handle.remove()
    assert len(passes) == 1 and most == [0] * len(saes.layers)
    assert set(table.loc[table["candidate"], "layer"]) == set(saes.layers)


def test_gemma_scope_is_read_as_its_file_says(hub_box):
    sae = Saes(GEMMA, 2, 2304)[0]
    (file,) = hub_box.folder("models", "google/gemma-scope-2b-pt-res").glob("layer_0/width_16k/*/params.npz")
    h = torch.randn(4, 2304, generator=torch.Generator().manual_seed(0))
    with np.load(file) as stored:
        pre = h.numpy() @ stored["W_enc"] + stored["b_enc"]
        expected = pre * (pre > stored["threshold"])
    torch.testing.assert_close(sae.encode(h), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    assert (expected > 0).any(0).sum() > 10


def openmoss(folder, h):
    """Activations and reconstruction of h, decoder norms, scale, as OpenMOSS's own loader has them.

    It brings the biases to the units of the raw residual, moves the decoder's norms into the
    encoder, and compares with the threshold then.
    """
    hyperparams = json.loads((folder / "hyperparams.json").read_text())
    scale = h.shape[-1] ** 0.5 / hyperparams["dataset_average_activation_norm"]["in"]
    w = {n: w.float() for n, w in load_file(folder / "checkpoints/final.safetensors").items()}
    norms = w["decoder.weight"].norm(dim=0)
    pre = h @ (w["encoder.weight"] * norms[:, None]).T + w["encoder.bias"] / scale * norms
    z = pre.where(pre > hyperparams["jump_relu_threshold"], 0)
    return z, z @ (w["decoder.weight"] / norms).T + w["decoder.bias"] / scale, norms, scale


@pytest.mark.parametrize("layer", [0, 2])
def test_llama_scope_fires_where_openmoss_says_it_does(hub_box, layer):
    with pytest.warns(UserWarning, match="thresholds are divided by decoder norms"):
        sae = Saes(LLAMA, 3, 64)[layer]
    folder = hub_box.folder("models", "fnlp/Llama3_1-8B-Base-LXR-8x") / f"Llama3_1-8B-Base-L{layer}R-8x"
    h = torch.randn(200, 64, generator=torch.Generator().manual_seed(0)) * 0.02
    expected, decoded, norms, scale = openmoss(folder, h)
    z = sae.encode(h)
    assert scale > 5 and norms.min() < 0.81 and norms.max() > 1.19
    # a difference in the last bits may fall across the threshold
    assert ((z > 0) != (expected > 0)).sum() <= 2
    assert 0.1 < (expected > 0).float().mean() < 0.5
    fires = (z > 0) & (expected > 0)
    # sae_lens counts a feature in units of its stored decoder row, of which one is ||d_i|| / s long
    torch.testing.assert_close((z * norms / scale)[fires], expected[fires], rtol=1e-3, atol=1e-5)
    # what is decoded is in the residual stream's own units
    torch.testing.assert_close(sae.decode(z), decoded, rtol=1e-3, atol=0.01)
    some = [0, 100, 511]
    torch.testing.assert_close(FeatureSet(sae, some).encode(h), z[:, some], rtol=1e-3, atol=1e-3)
    # one threshold for all, as sae_lens has it, is another rule
    sae.threshold.data *= norms
    assert ((sae.encode(h) > 0) != (expected > 0)).sum() > 500


def test_qwen_scope_keeps_the_50_largest_of_every_token(hub_box):
    saes = Saes(QWEN, 2, 4096)
    sae, h = saes[0], torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
    z = sae.encode(h)[0]
    stored = torch.load(hub_box.folder("models", "Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50") / "layer0.sae.pt")
    pre = torch.cat([h @ part.T for part in stored["W_enc"].split(8192)], dim=1)[0] + stored["b_enc"]
    kept = pre.topk(50)
    assert set((z > 0).nonzero().flatten().tolist()) == set(kept.indices.tolist())
    torch.testing.assert_close(z[kept.indices], kept.values, rtol=1e-3, atol=1e-3)

    # features are read with the whole encoder, but without the decoder
    decoder, encoder = weakref.ref(sae.W_dec), weakref.ref(sae.W_enc)
    features = FeatureSet(sae, kept.indices[:2].tolist())
    del sae
    saes.drop()
    gc.collect()
    assert encoder() is not None and decoder() is None
    torch.testing.assert_close(features.encode(h)[0], kept.values[:2], rtol=1e-3, atol=1e-3)


WIDTHS = [(GEMMA, 2304, "params.npz"), (LLAMA, 64, "final.safetensors"), (QWEN, 4096, "layer0.sae.pt")]


@pytest.mark.parametrize(("config", "width", "file"), WIDTHS, ids=["npz", "safetensors", "pt"])
def test_a_truncated_file_says_how_to_fetch_it_anew(hub_box, empty_cache, config, width, file):
    with hub_box.fault("stub", file), pytest.raises(SourceError, match=r"cannot be read.* fetched anew"):
        Saes(config, 2, width)[0]
