"""Frequency recall: the features that fire at the critical position on most of D_prior."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from igds_utils.core.experiment import Run
from igds_utils.engine import activations
from igds_utils.engine.features import Feature, features_of
from igds_utils.engine.prompts import cue_prompt
from igds_utils.engine.sae import Saes, unexplained

DECODED = 64  # first prompts that are reconstructed, to tell whether an SAE fits the model
# At p good SAEs of SmolLM2-135M have an FVU of 0.3 to 1.2 (0.1 on text), an L0 of 5 to 13 (31).
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
    """`frequency_recall` of a task's prior set, stored as `recall.parquet`."""
    path, prompts = f"{run.folder(task)}/recall.parquet", run.prompts(task, "prior")
    return _measured(run, path, prompts, run.inputs(task, "prior"))


def measure_cues(run: Run, task: str) -> pd.DataFrame:
    """The same of prompts of the cue alone, after unrelated texts: `recall_cues.parquet`."""
    own, rendering = run.task(task), run.config(task).rendering
    prompts = [cue_prompt(own, text, run.tokenizer, rendering) for text in UNRELATED]
    inputs = run.inputs(task) | {"prompts": prompts}
    return _measured(run, f"{task}/recall_cues.parquet", prompts, inputs)


def _measured(run: Run, path: str, prompts: list[str], inputs: dict) -> pd.DataFrame:
    tau, layers = run.preset.recall.tau, run.saes.layers

    def build() -> pd.DataFrame:
        tokens = run.preset.batch_tokens
        residual = activations.critical_residuals(run.lm, prompts, layers, tokens)
        return frequency_recall(residual, run.saes, tau)

    return run.make(path, build, tau=tau, decoded=DECODED, **inputs)


def frequency_recall(residual: dict[int, Tensor], saes: Saes, tau: float) -> pd.DataFrame:
    """Frequency of every feature that fires at least once; `candidate` where it reaches tau.

        F_cand = { i : (1 / |D_prior|) * sum_x 1[a_i(x, p) > 0] >= tau }

    residual: {layer: (N, d)} at the critical positions of D_prior. Columns: layer, feature,
    frequency, mean_activation (over all of D_prior), candidate, and the layer's fvu
    (`engine.sae.unexplained`) over the first DECODED prompts.
    """
    n, tables = len(next(iter(residual.values()))), []
    for layer in tqdm(saes.layers, desc="recall", unit="layer", leave=False, delay=2):
        sae, h = saes[layer], residual[layer]
        with torch.inference_mode():
            a, fvu = sae.encode(h.to(saes.device)), unexplained(sae, h[:DECODED])  # (N, M)
        del sae  # before the next one is read
        counts = {"frequency": (a > 0).sum(0) / n, "mean_activation": a.sum(0) / n}
        table = pd.DataFrame({name: a.double().cpu().numpy() for name, a in counts.items()})
        table = table.rename_axis("feature").reset_index().assign(fvu=fvu)
        table.insert(0, "layer", layer)
        tables.append(table[table["frequency"] > 0])
    saes.drop()  # up to 2 GB that what comes next can use
    found = pd.concat(tables, ignore_index=True)
    found["candidate"] = fires_often(found["frequency"], n, tau)
    return found


def fires_often(frequency: pd.Series, n_prior: int, tau: float) -> pd.Series:
    """Which frequencies reach tau; one of exactly tau does, whatever its rounding."""
    return frequency > tau - 1e-3 * 0.5 / n_prior


def candidates(recalled: pd.DataFrame) -> list[Feature]:
    """The candidates by frequency, mean activation (both falling), layer, index."""
    order = {"frequency": False, "mean_activation": False, "layer": True, "feature": True}
    kept = recalled[recalled["candidate"]]
    return features_of(kept.sort_values(list(order), ascending=list(order.values())))


def sae_fit(recalled: pd.DataFrame, saes: Saes) -> pd.DataFrame:
    """How each layer's SAE fits the model at p.

    Columns: L0, the mean number of features that fire; FVU; the L0 that the release states; and
    whether the SAE carries over: some fire, L0 is not `FAR` off, FVU not above `WORST`.
    """
    layers = recalled.groupby("layer")
    fit = pd.DataFrame({"L0": layers["frequency"].sum(), "FVU": layers["fvu"].first()})
    fit = fit.reindex(saes.layers).fillna({"L0": 0.0})
    fit["L0 of the release"] = [saes.stated_l0(layer) or np.nan for layer in saes.layers]
    times = (fit["L0"] / fit["L0 of the release"]).fillna(1.0)
    fit["carries over"] = times.between(1 / FAR, FAR) & ~(fit["FVU"] > WORST) & (fit["L0"] > 0)
    return fit


def random_features(facts: dict, n: int, seed: int) -> list[Feature]:
    """`n` distinct features of all layers' whole dictionaries, whether they fire or not.

    facts: recall.json, whose `layers` are those that have an SAE.
    """
    layers, total = facts["layers"], facts["n_features_total"]
    drawn = np.random.default_rng([seed, 2]).choice(total, min(n, total), replace=False)
    places = (divmod(int(place), total // len(layers)) for place in drawn)
    return [Feature(layers[layer], index) for layer, index in places]
