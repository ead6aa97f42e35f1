"""Feature activations at the critical position, read from the prompt alone.

Attention is causal, so a_i(x, p) does not depend on what follows p: the prompt suffices (never the target), and so do
the blocks up to the feature's own layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from igds_utils.engine import prompts
from igds_utils.engine.batching import pad, token_batches
from igds_utils.engine.lm import LM, residuals
from igds_utils.engine.sae import ONE_COLUMN, Feature, FeatureSet, Saes


def critical_residuals(
    lm: LM, texts: Sequence[str], layers: Sequence[int], batch_tokens: int = 2048, side: str = "right"
) -> dict[int, Tensor]:
    """Residual stream at each text's critical position, after each of the layers.

    texts: rendered prompts, each ending in its critical colon. side: padding, "left" or "right"; the result is the
    same. Returns {layer: (N, d) fp32 on the CPU}. One pass serves all layers and stops after the highest.
    """
    critical = prompts.critical_positions(lm.tokenizer, texts, texts)
    read = zip(prompts.encode_all(lm.tokenizer, texts), critical, strict=True)
    sequences = [ids[: p + 1] for ids, p in read]
    found = {layer: torch.empty(len(texts), lm.width) for layer in layers}
    with tqdm(total=len(texts), desc="read prompts", unit="prompt", leave=False, delay=2) as bar:
        for batch in token_batches([len(ids) for ids in sequences], batch_tokens):
            inputs = pad([sequences[i] for i in batch], lm.tokenizer.pad_token_id, side, lm.device)
            last = inputs["attention_mask"].shape[1]
            at = [last - 1 if side == "left" else critical[i] for i in batch]
            for layer, h in residuals(lm, layers, **inputs).items():
                found[layer][batch] = h[range(len(batch)), at].float().cpu()
            bar.update(len(batch))
    return found


def feature_activations(residual: dict[int, Tensor], saes: Saes, features: Sequence[Feature]) -> Tensor:
    """Activations a_i(x, p) of some features, from stored critical residuals: (N, len(features))."""
    return FeatureReader(saes, features).read(residual)


class FeatureReader:
    """Reads features from critical residuals, part after part.

    What is needed of an SAE whose features depend on one encoder column each is kept, so that it is read once. Of the
    others, whose whole encoder decides, there is one in memory at a time, and each part reads them anew.
    """

    def __init__(self, saes: Saes, features: Sequence[Feature]):
        self._saes, self._features = saes, list(features)
        self._kept: dict[int, FeatureSet] = {}

    @torch.inference_mode()
    def read(self, residual: dict[int, Tensor]) -> Tensor:
        """{layer: (N, d)} (`critical_residuals`) -> activations (N, features)."""
        columns: dict[Feature, Tensor] = {}
        for layer in sorted({feature.layer for feature in self._features}):
            here = [feature for feature in self._features if feature.layer == layer]
            encoded = self._of_layer(layer, here).encode(residual[layer].to(self._saes.device))
            columns.update(zip(here, encoded.cpu().unbind(-1), strict=True))
        return torch.stack([columns[feature] for feature in self._features], dim=-1)

    def _of_layer(self, layer: int, here: Sequence[Feature]) -> FeatureSet:
        if layer in self._kept:
            return self._kept[layer]
        made = FeatureSet(sae := self._saes[layer], [feature.index for feature in here])
        if sae.cfg.architecture() in ONE_COLUMN:
            self._kept[layer] = made
        return made
