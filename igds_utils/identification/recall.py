"""Frequency recall: the features that fire at the critical position on most of D_prior."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from igds_utils.config.config import ConfigError
from igds_utils.core.experiment import Run
from igds_utils.engine import activations
from igds_utils.engine.batching import even_chunks
from igds_utils.engine.features import Feature, features_of
from igds_utils.engine.prompts import cue_prompt
from igds_utils.engine.sae import Saes, unexplained

PROMPTS = 64  # of one part: what a killed recall loses at most
ENCODED = 512  # prompts whose activations of all features of a layer are in memory at once
DECODED = 64  # first prompts that are reconstructed as well, to tell whether an SAE fits the model
# At p prompts hardly differ and fewer features fire than on ordinary text: good SAEs of SmolLM2-135M have an FVU of 0.3
# to 1.2 there (0.1 on text) and an L0 of 5 to 13 (31). A wrong scale departs by far more.
FAR = 10.0  # times that L0 at p may be above or below what a release states of ordinary text
WORST = 2.0  # FVU at p

UNRELATED = (  # texts that pose no task, for prompts of the cue alone
    "The library opens at nine in the morning and closes at six.",
    "Rain fell on the hills all night, and the river rose slowly.",
    "My grandmother kept bees behind the old stone house.",
    "The committee will meet again on Thursday in the small hall.",
    "A red bicycle leaned against the wall of the bakery.",
    "The museum shows paintings, maps and instruments of sailors.",
    "He walked to the station because the bus was late.",
    "The lamp on the desk flickered twice and went out.",
    "Wool keeps warm even when it is wet, and cotton does not.",
    "The garden gate was painted green some years ago.",
)


def measure(run: Run, task: str) -> pd.DataFrame:
    """`frequency_recall` of a task's prior set, stored as `recall.parquet`.

    With `recall.contrast` a candidate's frequency must exceed its mean over the prior sets of the run's other tasks by
    that much; the column `elsewhere` holds that mean. Raises `ConfigError` where there is no other task.
    """
    contrast, path = run.preset.recall.contrast, f"{run.folder(task)}/recall.parquet"
    if contrast is None:
        return _counted(run, task, path)
    paths = {of: f"{run.folder(of)}/recall_frequencies.parquet" for of in (task, *run.tasks)}
    if len(paths) == 1:
        raise ConfigError("recall.contrast compares tasks, and this run has one: name two, or leave it out")
    own, *rest = (_counted(run, of, where) for of, where in paths.items())
    versions = {where: run.store.version(where) for where in paths.values()}
    return run.make(path, lambda: contrasted(own, rest, contrast), contrast=contrast, frequencies=versions)


def contrasted(own: pd.DataFrame, others: Sequence[pd.DataFrame], contrast: float) -> pd.DataFrame:
    """A task's recall without candidates that the mean frequency on other tasks comes closer to than `contrast`."""
    keys = ["layer", "feature"]
    frequencies = [table.set_index(keys)["frequency"] for table in others]
    elsewhere = pd.concat(frequencies, axis=1).fillna(0.0).mean(axis=1).rename("elsewhere")
    found = own.merge(elsewhere.reset_index(), on=keys, how="left").fillna({"elsewhere": 0.0})
    found["candidate"] &= found["frequency"] - found["elsewhere"] > contrast - 1e-9  # rounding
    return found


def measure_cues(run: Run, task: str) -> pd.DataFrame:
    """`frequency_recall` of prompts of the cue alone, after texts that pose no task: `recall_cues.parquet`."""
    rendering = run.config(task).rendering
    prompts = [cue_prompt(run.task(task), text, run.tokenizer, rendering) for text in UNRELATED]
    return _counted(run, task, f"{task}/recall_cues.parquet", prompts)


def overlap(recalled: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """How many candidates each two recalls have in common, a square table of counts by their names."""
    names = {name: set(candidates(table)) for name, table in recalled.items()}
    counts = [[len(own & other) for other in names.values()] for own in names.values()]
    return pd.DataFrame(counts, index=list(names), columns=list(names))


def _counted(run: Run, task: str, path: str, prompts: Sequence[str] | None = None) -> pd.DataFrame:
    """`frequency_recall` of prompts, by default the task's prior set, stored at `path`."""
    tau, layers = run.preset.recall.tau, run.saes.layers
    inputs = {"tau": tau, "decoded": DECODED, **run.inputs(task, *([] if prompts else ["prior"]))}
    if prompts:
        inputs["prompts"] = prompts

    def read(part: Sequence[str]) -> pd.DataFrame:
        found = activations.critical_residuals(run.lm, part, layers, run.preset.batch_tokens)
        return pd.DataFrame({str(layer): list(h.numpy()) for layer, h in found.items()})

    def count(read: pd.DataFrame) -> pd.DataFrame:
        residual = {layer: torch.from_numpy(np.stack(read[str(layer)])) for layer in layers}
        return frequency_recall(residual, run.saes, tau)

    parts = list(even_chunks(prompts or run.prompts(task, "prior"), PROMPTS))
    return run.make_in_parts(path, parts, read, f"{task} recall", finish=count, whole=True, **inputs)


def frequency_recall(residual: dict[int, Tensor], saes: Saes, tau: float) -> pd.DataFrame:
    """Firing frequency of every feature that fires at least once, with `candidate` = frequency >= tau.

        F_cand = { i : (1 / |D_prior|) * sum_x 1[a_i(x, p) > 0] >= tau }

    residual: {layer: (N, d)} at the critical positions of D_prior (`activations.critical_residuals`).
    Columns: layer, feature, frequency, mean_activation (over all of D_prior), max_activation, candidate, and fvu, the
    layer's (`engine.sae.unexplained`) over the first DECODED prompts.
    """
    n, tables = len(next(iter(residual.values()))), []
    for layer in tqdm(saes.layers, desc="recall", unit="layer", leave=False, delay=2):
        sae, h = saes[layer], residual[layer]
        fires, total, peak = 0, 0.0, torch.zeros(())
        with torch.inference_mode():
            for part in h.split(ENCODED):
                a = sae.encode(part.to(saes.device))  # (prompts, M)
                fires, total = fires + (a > 0).sum(0), total + a.sum(0)
                peak = torch.maximum(peak.to(a), a.amax(0))
            counts = {"frequency": fires.float() / n, "mean_activation": total / n, "max_activation": peak}
            fvu = unexplained(sae, h[:DECODED])
        del sae  # before the next one is read
        alive = fires.nonzero().squeeze(-1)
        known = {name: values[alive].double().cpu().numpy() for name, values in counts.items()}
        tables.append(pd.DataFrame({"layer": layer, "feature": alive.cpu().numpy(), **known, "fvu": fvu}))
    saes.drop()  # up to 2 GB that what comes next can use
    found = pd.concat(tables, ignore_index=True)
    found["candidate"] = fires_often(found["frequency"], n, tau)
    return found


def sae_fit(recalled: pd.DataFrame, saes: Saes) -> tuple[pd.DataFrame, str]:
    """How each layer's SAE fits the model at p: a table by layer, and one line about layers where it does not, or "".

    Columns: L0, the mean number of features that fire at p; FVU; the L0 that the SAE's release states; and whether the
    SAE carries over to this model.
    """
    layers = recalled.groupby("layer")
    fit = pd.DataFrame({"L0": layers["frequency"].sum(), "FVU": layers["fvu"].first()})
    fit = fit.reindex(saes.layers).fillna({"L0": 0.0})
    fit["L0 of the release"] = [saes.stated_l0(layer) or np.nan for layer in saes.layers]
    times = fit["L0"] / fit["L0 of the release"]
    fit["carries over"] = ~((times > FAR) | (times < 1 / FAR) | (fit["FVU"] > WORST) | (fit["L0"] == 0))
    off = fit.index[~fit["carries over"]].tolist()
    if not off:
        return fit, ""
    return fit, (
        f"the SAEs of layers {', '.join(map(str, off))} do not fit this model at p (no feature fires, L0 is more than "
        f"{FAR:g} times off the release's, or FVU above {WORST:g}): their scale is wrong, or they are another model's"
    )


def fires_often(frequency: pd.Series, n_prior: int, tau: float) -> pd.Series:
    """Which frequencies reach tau; one of exactly tau does, and a thousandth of half a sample guards its rounding."""
    return frequency > tau - 1e-3 * 0.5 / n_prior


def candidates(recalled: pd.DataFrame) -> list[Feature]:
    """The candidates in the order frequency, mean activation (both falling), layer, index."""
    kept = recalled[recalled["candidate"]].sort_values(
        ["frequency", "mean_activation", "layer", "feature"], ascending=[False, False, True, True]
    )
    return features_of(kept)


def random_features(facts: dict, n: int, seed: int) -> list[Feature]:
    """`n` distinct features drawn from all layers' whole dictionaries, whether they ever fire or not.

    facts: recall.json, whose `layers` are those that have an SAE.
    """
    layers, total = facts["layers"], facts["n_features_total"]
    drawn = np.random.default_rng([seed, 2]).choice(total, min(n, total), replace=False)
    places = (divmod(int(place), total // len(layers)) for place in drawn)
    return [Feature(layers[layer], index) for layer, index in places]


def recall_summary(recalled: pd.DataFrame, n_features: int, n_prior: int, tau: float) -> dict:
    """Counts for Table 1: candidates, and their share of all features in basis points."""
    n_candidates = int(recalled["candidate"].sum())
    facts = {"n_features_total": n_features, "n_prior": n_prior, "tau": tau, "n_candidates": n_candidates}
    return facts | {"basis_points": 1e4 * n_candidates / n_features}
