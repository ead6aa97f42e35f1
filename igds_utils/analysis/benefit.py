"""What selecting data costs at any scale, what training on less saves, and where the one pays for the other.

Operations come from `costs`, as for the plan; a machine of hardware.yaml turns them into GPU hours.

    scale = benefit.Scale(pool=100_000, ratio=0.5, model=shape, machine=costs.machines()["8 x H100 80 GB"], ...)
    table = benefit.estimate(scale)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from igds_utils import selectors
from igds_utils.config.settings import Shape
from igds_utils.core import costs
from igds_utils.core.costs import Machine
from igds_utils.display import about

SELECTORS = ("random", "loss", "ifd", "rds", "less", "igds")  # those whose cost is one of model passes


@dataclass(frozen=True)
class Scale:
    """An experiment's size and prices; every field is an assumption that a reader can change."""

    pool: int  # samples to choose from
    ratio: float  # share that is kept
    prompt_tokens: float  # of one sample, mean
    target_tokens: float
    model: Shape
    machine: Machine
    price: float  # of one GPU hour
    epochs: float = 1.0
    trainings: int = 1  # how often one selection is trained on (seeds, settings that are tried)
    prior: int = 500  # prompts of recall
    validation: int = 64  # samples of the causal filter, and as many that confirm its choice
    candidates: int = 400  # features that are amplified on each of them
    new_tokens: int = 256  # that each amplified answer takes
    rows: int = 240  # answers that are decoded together; 40 GB of caches hold about so many of an 8B model
    blocks: int | None = None  # that are run to read the task feature (its layer + 1); all by default

    def __post_init__(self):
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio must lie between 0 and 1, not {self.ratio}: at 1 nothing is saved")

    @property
    def length(self) -> float:
        return self.prompt_tokens + self.target_tokens

    def hours(self, seconds: float) -> float:
        """GPU hours of so many seconds on all devices."""
        return seconds * self.machine.devices / 3600

    @property
    def training_hours(self) -> float:
        """GPU hours of training on the whole pool, as often as the selection would be trained on."""
        tokens = self.pool * self.length * self.epochs * self.trainings
        return self.hours(
            self.machine.seconds(costs.training_flops(self.model, tokens, self.length), "train")
        )

    @property
    def identification_hours(self) -> float:
        """GPU hours of IGDS's first stage (recall, causal filter, confirmation), whatever the pool's size."""
        read = (self.prior + 2 * self.validation) * self.prompt_tokens
        answers = (
            self.candidates + 1 + 2
        ) * self.validation  # the original beside each; the winner is confirmed
        flops = costs.forward_flops(self.model, read, self.prompt_tokens)
        forced = answers * self.target_tokens  # every answer's reference is read under the same amplification
        flops += costs.forward_flops(self.model, forced, self.length, head_tokens=forced)
        length = self.prompt_tokens + self.new_tokens
        written = costs.decode_seconds(
            self.model, self.machine, answers * self.new_tokens, min(self.rows, answers), length
        )
        return self.hours(self.machine.seconds(flops, "read") + written)

    def scoring_hours(self, selector: str) -> float:
        """GPU hours of the model passes that a selector needs on the whole pool (`costs.selection_cost`)."""
        blocks = self.model.layers if self.blocks is None else self.blocks
        cost = costs.selection_cost(
            self.model,
            selectors.get(selector).needs,
            self.pool,
            self.prompt_tokens,
            self.target_tokens,
            blocks,
        )
        return self.hours(self.machine.seconds(cost.flops, "read"))


def estimate(scale: Scale) -> pd.DataFrame:
    """One row a selector, in GPU hours and money.

    Columns: selector, identification, scoring, saved (training hours), net (saved less spent, hours), spent_price,
    saved_price, net_price, break_even (pool size from which net is positive; 0 where it always is, nan where it
    never is).
    """
    saved = (1 - scale.ratio) * scale.training_hours
    rows = []
    for selector in SELECTORS:
        identification = scale.identification_hours if selector == "igds" else 0.0
        scoring = scale.scoring_hours(selector)
        gain = (saved - scoring) / scale.pool  # of every further sample
        rows.append(
            {
                "selector": selector,
                "identification": identification,
                "scoring": scoring,
                "saved": saved,
                "net": saved - scoring - identification,
                "spent_price": (identification + scoring) * scale.price,
                "saved_price": saved * scale.price,
                "net_price": (saved - scoring - identification) * scale.price,
                "break_even": identification / gain if gain > 0 else np.nan,
            }
        )
    return pd.DataFrame(rows)


def curve(scale: Scale, smallest: float = 1e3, largest: float = 1e7, points: int = 60) -> pd.DataFrame:
    """Net saving of every selector over pool sizes: columns selector, pool, net_share.

    net_share: of what training on the whole pool costs; (1 - ratio) is the most that can be saved.
    """
    tables = []
    for size in np.geomspace(smallest, largest, points).round():
        here = replace(scale, pool=int(size))
        share = estimate(here)["net"] / here.training_hours
        tables.append(pd.DataFrame({"selector": list(SELECTORS), "pool": size, "net_share": share}))
    table = pd.concat(tables, ignore_index=True)
    return table.sort_values(["selector", "pool"], ignore_index=True)


def story(scale: Scale, found: pd.DataFrame, machine: str, currency: str = "$") -> str:
    """What `estimate` says of IGDS, in words, with what its saving is to be held against.

    machine: the name of `scale.machine`.
    """
    row = found.set_index("selector").loc["igds"]
    spent, saved = row["identification"] + row["scoring"], row["saved"]
    pays = (
        "it never pays at these numbers"
        if pd.isna(row["break_even"])
        else f"it pays from a pool of {about(row['break_even'])} samples on"
    )
    return (
        f"Selecting {100 * scale.ratio:g} % of {scale.pool:,} samples for a model of "
        f"{scale.model.parameters / 1e9:.1f} billion parameters with IGDS takes {spent:.1f} GPU hours of {machine} "
        f"({currency}{spent * scale.price:,.2f} at {currency}{scale.price:,.2f} an hour), of which finding the feature "
        f"takes {100 * row['identification'] / spent:.0f} %; training on the selection instead of the whole pool saves "
        f"{saved:.1f} GPU hours ({currency}{saved * scale.price:,.2f}): {pays}. A random choice of that size saves the "
        "same for nothing, so the price of a selector buys a better model or it buys nothing."
    )
