"""Whether a user's pool can be read as a selector needs it, before anything is computed."""

from __future__ import annotations

from collections import Counter

from transformers import AutoConfig, PreTrainedTokenizerBase

from igds_utils import selectors
from igds_utils.config.config import ConfigError
from igds_utils.core.experiment import Run
from igds_utils.selection.needs import READS, Samples
from igds_utils.selection.user_pool import UserPool

FIRES = "task_feature_activations"


def check_readable(
    run: Run, task: str, pool: UserPool, selector: str, skip_bad: bool
) -> tuple[UserPool, list[str]]:
    """A user's pool whose samples can all be read as the selector's measurements read them, and what is cut of them.

    Others are left out by `skip_bad`; without it they are a `PoolError`. Raises `ConfigError` for a task feature that
    there is not.
    """
    needs = selectors.get(selector).needs
    if FIRES in needs:
        check_features(run, task)
    limits = {
        what: _context_length(run.train_tokenizer if what == "training_pairs" else run.tokenizer)
        for what in sorted({READS[need] for need in needs if need in READS})
    }
    samples, problems, cut = Samples(run, task, pool, ""), {}, Counter()
    for number in range(len(pool)) if limits else ():
        one, said = samples.at([number]), ""
        for what, most in limits.items():
            try:
                (tokens,) = one.lengths(what)
            except ValueError as error:
                said = str(error)
                continue
            if tokens > most:
                setting = "max_prompt_tokens" if what == "prompts" else "sft.max_length"
                read = f"{tokens:,} tokens of it are read, the model reads at most {most:,}"
                said = f"{read}: shorten it, or lower {setting}"
        if said:
            problems[number] = said
        else:
            cut.update({kind for what in limits for kind in one.cut(what)})
    pool, config = pool.settled(problems, skip_bad), run.config(task)
    settings = {
        "targets": f"sft.max_length {config.sft.max_length}",
        "prompts": f"tasks.{task}.max_prompt_tokens {config.max_prompt_tokens}",
    }
    return pool, [
        f"{cut[kind]} of {len(pool)} {kind} are longer than what is read of them ({setting})"
        for kind, setting in settings.items() if cut[kind]
    ]  # fmt: skip


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
