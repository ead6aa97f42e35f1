"""A model that is loaded once and handed out again and again as it was loaded."""

from __future__ import annotations

from copy import deepcopy

from igds_utils.engine.lm import LM


class Fresh:
    """Keeps the weights and settings of a model aside; `lend` gives the model with exactly these.

    There is one model: whoever borrowed it before loses what it learnt there.
    """

    def __init__(self, lm: LM):
        self.lm, model = lm, lm.model
        self._weights = {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}
        self._settings = [deepcopy(vars(owner)) for owner in (model.config, model.generation_config)]

    def lend(self) -> LM:
        """The model in evaluation mode, bit by bit as it was loaded, in the precision in which it was loaded."""
        model = self.lm.model
        for name, parameter in model.named_parameters():
            parameter.data = self._weights[name].to(parameter.device, copy=True)
            parameter.grad = None
        for owner, settings in zip((model.config, model.generation_config), self._settings, strict=True):
            vars(owner).clear()
            vars(owner).update(deepcopy(settings))
        model.eval()
        return self.lm
