"""The two programs that are packages of the lock; the others are cloned by hand."""

import pytest

pytestmark = pytest.mark.slow


def test_scores_are_those_of_lm_evals_own_runner():
    import lm_eval_runner

    compared, same = lm_eval_runner.compare()
    assert compared == same == 281


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3"])
def test_steered_answers_are_those_of_saelens(architecture):
    import sae_lens_steering

    compared, same, changed = sae_lens_steering.compare(architecture)
    assert compared == same == 120 and changed > compared / 4
