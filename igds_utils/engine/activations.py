"""Feature activations at the critical position, read from the prompt alone.

Attention is causal, so a_i(x, p) does not depend on what follows p: the prompt suffices (never the
target), and so do the blocks up to the feature's own layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from igds_utils.engine import prompts
from igds_utils.engine.batching import padded_batches, seen
from igds_utils.engine.lm import LM, residuals
from igds_utils.engine.sae import ONE_COLUMN, Feature, FeatureSet, Saes


def critical_residuals(
    lm: LM, texts: Sequence[str], layers: Sequence[int], batch_tokens: int = 2048
) -> dict[int, Tensor]:
    """Residual stream at each text's critical position, after each of the layers.

    texts: rendered prompts, each ending in its critical colon. Returns {layer: (N, d) fp32 on the CPU}. One pass serves
    all layers and stops after the highest.
    """
    read = prompts.encode_all(lm.tokenizer, texts)
    critical = [
        prompts.critical_position(lm.tokenizer, text, text, ids)
        for text, ids in zip(texts, read, strict=True)
    ]
    sequences = [ids[: p + 1] for ids, p in zip(read, critical, strict=True)]
    found = {layer: torch.empty(len(texts), lm.width) for layer in layers}
    for batch, inputs in padded_batches(lm, sequences, batch_tokens, "read prompts"):
        for layer, h in residuals(lm, layers, **seen(inputs)).items():
            found[layer][batch] = h[range(len(batch)), [critical[i] for i in batch]].float().cpu()
    return found


@torch.inference_mode()
def feature_activations(
    residual: dict[int, Tensor], saes: Saes, features: Sequence[Feature], kept: dict | None = None
) -> Tensor:
    """a_i(x, p) of features, from critical residuals {layer: (N, d)}: (N, len(features)).

    kept: a dictionary that the parts of a pool share. It keeps what is needed of the SAEs whose
    features depend on one encoder column each, which are then read once; of the others, whose whole
    encoder decides, none stays in memory.
    """
    kept = {} if kept is None else kept
    found = torch.empty(len(next(iter(residual.values()))), len(features))
    for layer in sorted({feature.layer for feature in features}):
        here = [column for column, feature in enumerate(features) if feature.layer == layer]
        if (known := kept.get(layer)) is None:
            known = FeatureSet(sae := saes[layer], [features[column].index for column in here])
            if sae.cfg.architecture() in ONE_COLUMN:
                kept[layer] = known
        found[:, here] = known.encode(residual[layer].to(saes.device)).cpu()
    return found
