"""A tiny Unbabel/wmt22-comet-da, and of xlm-roberta-large what COMET reads."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizerFast

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
CONFIG = XLMRobertaConfig(
    vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=514, pad_token_id=1,
)  # fmt: skip
HPARAMS = {  # whatever else the true file names has its default
    "class_identifier": "regression_metric",
    "pretrained_model": "xlm-roberta-large",
    "layer_norm": False,
    "layer_transformation": "sparsemax",
    "hidden_sizes": [24, 8],
}


def xlm_roberta(folder: Path) -> None:
    pieces = [*SPECIAL, "▁", *map(chr, range(33, 127)), *"有个又买了。，"]
    backend = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    XLMRobertaTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    CONFIG.save_pretrained(folder)


def wmt22_comet_da(folder: Path) -> None:
    """hparams.yaml and a Lightning checkpoint whose scores lie around 0.8."""
    width, (first, second) = CONFIG.hidden_size, HPARAMS["hidden_sizes"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = XLMRobertaModel(CONFIG, add_pooling_layer=False)
        layers = [nn.Linear(6 * width, first), nn.Tanh(), nn.Dropout(), nn.Linear(first, second), nn.Tanh()]
        estimator = nn.Sequential(*layers, nn.Dropout(), nn.Linear(second, 1))
    estimator[-1].bias.data.fill_(0.8)
    mixed = CONFIG.num_hidden_layers + 1
    state = {f"encoder.model.{name}": value for name, value in encoder.state_dict().items()}
    state |= {f"estimator.ff.{name}": value for name, value in estimator.state_dict().items()}
    state |= {f"layerwise_attention.scalar_parameters.{i}": torch.zeros(1) for i in range(mixed)}
    state |= {"layerwise_attention.gamma": torch.ones(1)}
    state |= {"layerwise_attention.dropout_mask": torch.zeros(mixed)}
    state |= {"layerwise_attention.dropout_fill": torch.full((mixed,), -1e20)}
    (folder / "checkpoints").mkdir()
    (folder / "hparams.yaml").write_text(yaml.safe_dump(HPARAMS))
    whole = {"state_dict": state, "hyper_parameters": HPARAMS, "pytorch-lightning_version": "1.9.0"}
    torch.save(whole, folder / "checkpoints/model.ckpt")


COMET = {"xlm-roberta-large": xlm_roberta, "Unbabel/wmt22-comet-da": wmt22_comet_da}
