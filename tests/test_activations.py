"""Critical-position residuals against the whole model, one text at a time."""

import pytest
import torch

from igds_utils import tiny
from igds_utils.engine import activations, prompts

LAYERS = list(range(tiny.LAYERS))
TEXTS = [
    "Ann has 3 apples.\nSolution:",
    "A longer question: how many apples does she have left, and why?\nSolution:",
    "Text: x\nTranslation:",
    "12 + 7\nPlease reason step by step.\nSolution:",
    "a:",
]


def obvious_residuals(lm, text, target):
    """h(p) after every block, the last after the final norm: prompt and target, batch of one."""
    ids = torch.tensor([prompts.encode(lm.tokenizer, text + target)])
    p = prompts.critical_position(lm.tokenizer, text + target, text)
    with torch.inference_mode():
        states = lm.model(ids, output_hidden_states=True).hidden_states
    return [state[0, p] for state in states[1:]]


@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
def test_early_exit_equals_the_full_forward_pass(lm, batch_tokens):
    found = activations.critical_residuals(lm, TEXTS, LAYERS, batch_tokens)
    for row, text in enumerate(TEXTS):
        ours = [found[layer][row] for layer in LAYERS]
        ours[-1] = lm.model.get_decoder().norm(ours[-1])
        for one, expected in zip(ours, obvious_residuals(lm, text, " 12 + 7 = 19."), strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)
