"""Whether a user's pool can be read as a selector needs it, before anything is computed."""

from __future__ import annotations

from transformers import AutoConfig, PreTrainedTokenizerBase

from igds_utils import selectors
from igds_utils.config.config import ConfigError
from igds_utils.core.experiment import Run
from igds_utils.selection.needs import READS, Pool
from igds_utils.selection.user_pool import PoolError, UserPool

FIRES = "task_feature_activations"


def check_readable(members: Pool, pool: UserPool, selector: str) -> None:
    """Raise `PoolError` for a sample of a user's pool that cannot be read as the selector's measurements read it.

    Raises `ConfigError` for a task feature that there is not.
    """
    run, needs = members.run, selectors.get(selector).needs
    if FIRES in needs:
        check_features(run, members.task)
    limits = {
        what: _context_length(run.train_tokenizer if what == "training_pairs" else run.tokenizer)
        for what in sorted({READS[need] for need in needs if need in READS})
    }
    for number in range(len(pool)) if limits else ():
        one = members.samples.at([number])
        for what, most in limits.items():
            try:
                (tokens,) = one.lengths(what)
            except ValueError as error:
                raise PoolError(f"{pool.place(number)}: {error}") from None
            if tokens > most:
                setting = "max_prompt_tokens" if what == "prompts" else "sft.max_length"
                raise PoolError(
                    f"{pool.place(number)}: {tokens:,} tokens of it are read, the model reads at most {most:,}: "
                    f"shorten it, remove the record, or lower {setting}"
                )


def _context_length(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the model of a tokenizer reads at once; their files lie in one folder."""
    return AutoConfig.from_pretrained(tokenizer.name_or_path).get_text_config().max_position_embeddings


def check_features(run: Run, task: str) -> None:
    """Raise `ConfigError` for a task feature that the model's SAEs do not have."""
    for feature in run.task_features(task):
        if feature.layer not in run.saes.layers:
            layers = ", ".join(map(str, run.saes.layers))
            raise ConfigError(f"feature {feature.name}: layer {feature.layer} has no SAE; there are {layers}")
        if feature.index >= run.saes.d_sae:
            raise ConfigError(
                f"feature {feature.name}: the SAE has {run.saes.d_sae} features, numbered from 0: correct the index"
            )
