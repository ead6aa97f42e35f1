"""Reading and amplifying features under every convention of sae_lens; where SAEs come from."""

import json
from functools import partial

import pytest
import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from safetensors.torch import load_file, save_file

from igds_utils import tiny
from igds_utils.config.refs import SaeConfig
from igds_utils.data.hub import SourceError
from igds_utils.engine.features import LAYER_FOLDER, neuronpedia_url
from igds_utils.engine.sae import Feature, FeatureSet, Saes, directions

WIDTH, D_SAE = tiny.WIDTH, tiny.D_SAE
INDICES = [5, 0, 63, 17, 40]  # in no order, first and last among them


def drawn(kind, config, **fields):
    """Random weights of every kind: decoder rows of different norm, a decoder bias far from zero."""
    sae = kind(config(d_in=WIDTH, d_sae=D_SAE, **fields))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sae.named_parameters():
        scale = 2.0 if name == "b_dec" else 0.3
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
        if name == "threshold":
            parameter.data = parameter.data.abs()
    return sae.requires_grad_(False).eval()


def folded(made):
    """As after training on inputs scaled by 0.15: reads and writes raw residuals."""
    made.fold_activation_norm_scaling_factor(0.15)
    return made


jumprelu = partial(drawn, JumpReLUSAE, JumpReLUSAEConfig)
standard = partial(drawn, StandardSAE, StandardSAEConfig)
rescaled_topk = partial(drawn, TopKSAE, TopKSAEConfig, k=8, rescale_acts_by_decoder_norm=True)
SAES = {
    "jumprelu": lambda: tiny.sae("jumprelu"),
    "jumprelu, large biases": jumprelu,
    "jumprelu, bias on the input": partial(jumprelu, apply_b_dec_to_input=True),
    "standard": partial(standard, apply_b_dec_to_input=False),
    "standard, bias on the input": partial(standard, apply_b_dec_to_input=True),
    "topk": lambda: tiny.sae("topk"),
    "topk, rescaled": rescaled_topk,
    "jumprelu, folded": lambda: folded(tiny.sae("jumprelu")),
    "topk, rescaled and folded": lambda: folded(rescaled_topk()),
}


@pytest.fixture(params=SAES)
def sae(request):
    return SAES[request.param]()


@pytest.fixture
def h():
    return torch.randn(6, 7, WIDTH, generator=torch.Generator().manual_seed(2)) * 3


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_few_features_read_as_the_whole_sae_reads_them(sae, h):
    expected = sae.encode(h)[..., INDICES]
    assert (expected > 0).any() and (expected == 0).any()
    close(FeatureSet(sae, INDICES).encode(h), expected)
    close(FeatureSet(sae, INDICES).encode(h[0, 0]), expected[0, 0])


def test_one_feature_a_row(sae, h):
    which = torch.tensor([4, 0, 0, 2, 1, 3])
    found = FeatureSet(sae, INDICES).encode_rows(h, which)
    assert found.shape == (6, 7)
    for row, feature in enumerate(which.tolist()):
        close(found[row], sae.encode(h[row])[:, INDICES[feature]])


def test_influence_is_what_doubling_the_feature_adds_to_the_reconstruction(sae, h):
    z = sae.encode(h.reshape(-1, WIDTH))
    d = directions(sae, torch.tensor(INDICES))
    assert d.shape == (len(INDICES), WIDTH)
    for column, index in enumerate(INDICES):
        doubled = z.clone()
        doubled[:, index] *= 2
        added = sae.decode(doubled) - sae.decode(z)
        torch.testing.assert_close(z[:, index, None] * d[column], added, rtol=1e-3, atol=2e-5)


@pytest.fixture
def folder(tmp_path):
    """SAEs of layers 1 and 3 in 16 bit, as they are shipped, beside a file that is none."""
    for layer in (1, 3):
        place = tmp_path / LAYER_FOLDER.format(layer)
        tiny.sae(seed=layer).save_model(place)
        file = place / "sae_weights.safetensors"
        save_file({name: weight.half() for name, weight in load_file(file).items()}, file)
    (tmp_path / "quality.json").write_text("{}")
    (tmp_path / "layer_notes.md").write_text("")
    return tmp_path


def from_folder(folder, layers="all"):
    return Saes(SaeConfig(source="folder", name=str(folder), layers=layers), tiny.LAYERS, WIDTH)


def test_a_folder_of_16_bit_saes_is_read_in_fp32(folder, h):
    saes = from_folder(folder)
    assert (saes.layers, saes.d_sae) == ([1, 3], D_SAE)
    for layer in saes.layers:
        sae = saes[layer]
        assert {p.dtype for p in sae.parameters()} == {torch.float32}
        assert not any(p.requires_grad for p in sae.parameters())
        expected = tiny.sae(seed=layer)
        torch.testing.assert_close(sae.W_enc.data, expected.W_enc.data, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(sae.encode(h), expected.encode(h), rtol=0.05, atol=0.05)


def test_a_layer_without_an_sae_is_refused(folder):
    with pytest.raises(SourceError, match=r"no SAE of .* for layers \[2\]; there are \[1, 3\]"):
        from_folder(folder, layers=[2, 3])
    with pytest.raises(SourceError, match=r"for layer 0; there are \[1, 3\]"):
        from_folder(folder)[0]


def saved(folder, old=False, **fields):
    """An SAE of layer 3 with another cfg.json; old: as sae_lens before version 6 wrote it."""
    sae = tiny.sae(seed=3)
    sae.cfg.metadata.hook_name = "blocks.3.hook_resid_post"
    sae.save_model(folder)
    written = json.loads((folder / "cfg.json").read_text())
    metadata = written.pop("metadata")
    metadata["hook_name"] = fields.pop("hook_name", metadata["hook_name"])
    if old:
        del metadata["sae_lens_version"], metadata["sae_lens_training_version"]
    written |= (metadata if old else {"metadata": metadata}) | fields
    (folder / "cfg.json").write_text(json.dumps(written))


NAMES = ["layer_3", "layer_03", "layer_03_width_64", "blocks.3.hook_resid_post", "~/layer_03"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("old", [False, True])
def test_folders_named_as_people_name_them_are_read(tmp_path, monkeypatch, h, name, old):
    monkeypatch.setenv("HOME", str(tmp_path))
    saved(tmp_path / name.removeprefix("~/"), old, neuronpedia_id="page" if old else None)
    config = SaeConfig(source="folder", name="~" if "~" in name else str(tmp_path))
    saes = Saes(config, tiny.LAYERS, WIDTH)
    assert (saes.layers, saes.d_sae) == ([3], D_SAE)
    close(saes[3].encode(h), tiny.sae(seed=3).encode(h))
    page = "https://www.neuronpedia.org/page/9" if old else None
    assert neuronpedia_url(config, Feature(3, 9)) == page


@pytest.mark.parametrize("old", [False, True])
def test_an_sae_of_another_layer_is_refused_whoever_wrote_it(tmp_path, old):
    saved(tmp_path / "layer_03", old, hook_name="blocks.2.hook_resid_post")
    with pytest.raises(SourceError, match="layer_03 .*reads blocks.2.hook_resid_post"):
        from_folder(tmp_path)


def test_an_unknown_release_or_id_is_named():
    with pytest.raises(SourceError, match="sae_lens knows no release 'gemma-scope'"):
        Saes(SaeConfig(source="release", name="gemma-scope"), 26, WIDTH)
    with pytest.raises(SourceError, match=r"no SAE 'layer_\{layer\}/16k'"):
        where = {"name": "gemma-scope-2b-pt-res-canonical", "id": "layer_{layer}/16k"}
        Saes(SaeConfig(source="release", **where), 26, WIDTH)
