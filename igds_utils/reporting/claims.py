"""The paper's claims, one by one: what a run's stored results say of each, by rules that stand beside the verdicts.

A rule is a function of what is stored; its docstring says when the claim is supported. What is trained once is shown,
not judged.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from scipy import stats

from igds_utils.core.store import Store
from igds_utils.data.stats import paired_difference
from igds_utils.display import LOGLIK, POINTS, Metric, correlation, number, p_value, task_title
from igds_utils.training.evaluation import DRAWS

SUPPORTED, AGAINST, OPEN, NOT_RUN = "supported", "not supported", "cannot tell", "not run"
LEVEL, POWER = 0.05, 0.8
MARGIN = 0.02  # of general questions: a smaller loss is none


class Finding(NamedTuple):
    """A verdict with its numbers, and the smallest difference that could have been told; both may be empty."""

    verdict: str = NOT_RUN
    numbers: str = ""
    could_tell: str = ""


@dataclass(frozen=True)
class Stored:
    """What a run stored of one task."""

    store: Store
    task: str
    metric: Metric
    options: dict[str, Any] = field(default_factory=dict)  # of `stats.interval`

    def read(self, name: str) -> Any:
        """A product of the task; None where it was not made or not kept."""
        path = f"{self.task}/{name}"
        return self.store.read(path) if self.store.has(path) else None

    def arms(self, selector: str) -> list[dict]:
        """Records of summary.json of a selector, the main ratio first, then by ratio."""
        found = [record for record in self.read("summary.json") or [] if record["selector"] == selector]
        return sorted(found, key=lambda record: (not record.get("main", True), record["ratio"] or 0))

    def check(self, name: str) -> dict | None:
        made = self.store.read("checks.json").get(self.task, []) if self.store.has("checks.json") else []
        return next((check for check in made if check["name"] == name), None)

    def judged(self, mean: float, low: float | None, high: float | None, show: Metric) -> Finding:
        """A difference with its interval: supported above zero, not supported below, and what it could have told.

        The last is `minimum_detectable_effect` in the measure's unit, of a score also in spans (clean minus corrupted).
        """
        numbers = f"{show.show_interval(mean, low, high, signed=True)} {show.unit}"
        if low is None or high is None:
            return Finding(OPEN, numbers)
        size = minimum_detectable_effect(low, high, self.options.get("confidence", 0.95))
        span = (self.check("clean - corrupted") or {}).get("gain", 0)
        spans = f" ({size / span:.1f} spans)" if show is self.metric and span > 0 else ""
        return Finding(by_interval(low, high), numbers, f"{show.show(size)} {show.unit}{spans}")


def minimum_detectable_effect(low: float, high: float, confidence: float = 0.95) -> float:
    """The true difference that an interval as wide as this one leaves zero out of in 80 % of all repetitions."""
    z = stats.norm.ppf([(1 + confidence) / 2, POWER])
    return float((high - low) / 2 * z.sum() / z[0])


def by_interval(low: float, high: float, border: float = 0.0) -> str:
    """Supported above the border, not supported below it; an interval that covers it cannot tell."""
    return SUPPORTED if low > border else AGAINST if high < border else OPEN


# ---- what is trained -------------------------------------------------------------------------------------


def beats(stored: Stored, other: str, place: int = 0) -> Finding:
    """The paired difference of IGDS and the other lies above zero, below it the claim is not supported; of IGDS two
    trainings or more, of the other two, of Random five draws. Where the score's interval covers zero, that of the
    test log-likelihood decides."""
    ours = stored.arms("igds")[place:]
    theirs = [one for one in stored.arms(other) if ours and one["ratio"] in (None, ours[0]["ratio"])]
    if not ours or not theirs:
        return Finding()
    igds, trainings, draws = ours[0], len(ours[0]["seeds"]), len(theirs[0]["seeds"])
    found = [
        stored.judged(*(igds[f"{name}{end}"] for end in ("", "_low", "_high")), show)
        for name, show in ((f"vs_{other}", stored.metric), (f"loglik_vs_{other}", LOGLIK))
        if igds.get(name) is not None
    ]
    numbers, told, verdict = [one.numbers for one in found], [], OPEN
    if other == "random" and igds.get("above_random") is not None:
        numbers.append(f"above {igds['above_random']} of {draws} draws")
    if trainings < 2 or draws < (DRAWS if other == "random" else 2):
        numbers.append(f"not judged: {trainings} and {draws} trainings")
        found = []
    for one in found:  # the likelihood where the score cannot tell
        if verdict == OPEN:
            verdict, told = one.verdict, [*told, one.could_tell]
    return Finding(verdict, "; ".join(numbers) or "the difference was not stored", "; ".join(told))


def together(found: dict[str, Finding]) -> Finding:
    """One finding of several that must all hold; those that were not run are left out."""
    run = {name: one for name, one in found.items() if one.verdict != NOT_RUN}
    verdicts = [verdict for verdict in (AGAINST, OPEN, SUPPORTED) if verdict in {one.verdict for one in run.values()}]
    lines = ([f"{name}: {text}" for name, one in run.items() if (text := one[part])] for part in (1, 2))
    return Finding(verdicts[0] if run else NOT_RUN, *map("\n".join, lines))


def at_every_ratio(stored: Stored) -> Finding:
    """At each ratio that was run the difference to Random lies above zero, by the rule for the main ratio."""
    ratios = [f"{100 * record['ratio']:g} %" for record in stored.arms("igds")]
    found = {ratio: beats(stored, "random", place) for place, ratio in enumerate(ratios)}
    return together(found) if len(ratios) > 1 else Finding()


def beats_all(stored: Stored, others: dict[str, str]) -> Finding:
    """Each paired difference that was run lies above zero, by the rule for a single other arm."""
    return together({title: beats(stored, other) for other, title in others.items()})


def data_matter(stored: Stored, better: str, worse: str) -> Finding:
    """The paired difference lies above zero, with two trainings of each or more; clean minus corrupted is the span."""
    if (check := stored.check(f"{better} - {worse}")) is None:
        return Finding()
    found = stored.judged(check["gain"], check["low"], check["high"], stored.metric)
    return found if check["passed"] is not None else Finding(OPEN, f"{found.numbers}; not judged: trained once")


def forgets_nothing(stored: Stored) -> Finding:
    """IGDS minus Original on general questions lies above −2 points, with two trainings or more."""
    keys, answers = ["benchmark", "subject", "item"], {}
    arms = [f"{arm['arm']}-s{seed}" if seed else arm["arm"] for arm in stored.arms("igds")[:1] for seed in arm["seeds"]]
    for arm in ["original", *arms]:
        if (table := stored.read(f"arms/{arm}/capabilities.parquet")) is not None:
            answers[arm] = table.set_index(table[keys].astype(str).agg(" ".join, axis=1))["score"]
    base = answers.pop("original", None)
    if base is None or not answers:
        return Finding()
    moved = paired_difference(pd.DataFrame(answers), base, **stored.options)
    found = stored.judged(*moved[:3], POINTS)
    numbers = f"{found.numbers} on {moved.n:,} questions"
    if len(answers) < 2:
        return Finding(OPEN, f"{numbers}; not judged: one training was asked")
    return Finding(by_interval(moved.low, moved.high, -MARGIN), numbers, found.could_tell)


def activation_follows_score(stored: Stored) -> Finding:
    """Spearman's ρ of median activation and score is positive, p < 0.05 or interval above zero; two trainings each."""
    rho = (stored.read("correlation.json") or {}).get("trained")
    if not rho or rho["rho"] is None:
        return Finding()
    trained = [record for record in stored.read("summary.json") if record["selector"] != "original"]
    if min(len(record["seeds"]) for record in trained) < 2:
        return Finding(OPEN, f"{correlation(rho)}; not judged: an arm was trained once")
    if rho["p_value"] is None:  # many arms
        return Finding(by_interval(rho["low"], rho["high"]), correlation(rho))
    sign = SUPPORTED if rho["rho"] > 0 else AGAINST
    return Finding(sign if rho["p_value"] < LEVEL else OPEN, correlation(rho))


def is_cheaper(stored: Stored) -> Finding:
    """Its selection step took fewer seconds than that of Loss."""
    costs = stored.read("selection_costs.parquet")
    seconds = {} if costs is None else costs.set_index("selector")["seconds"]
    if "igds" not in seconds or "loss" not in seconds:
        return Finding()
    verdict = SUPPORTED if seconds["igds"] < seconds["loss"] else AGAINST
    return Finding(verdict, f"{seconds['igds']:,.1f} s, Loss {seconds['loss']:,.1f} s")


# ---- what is found in the model --------------------------------------------------------------------------


def few_recalled(stored: Stored) -> Finding:
    """At most 100 of 10,000 features are recalled (the paper: 0.35 to 9.2)."""
    if (recall := stored.read("recall.json")) is None:
        return Finding()
    numbers = f"{recall['n_candidates']:,} of {recall['n_features_total']:,}: {number(recall['basis_points'], 2)} ‱"
    return Finding(SUPPORTED if recall["basis_points"] <= 100 else AGAINST, numbers)


def _features(stored: Stored) -> tuple[dict, dict, Metric, str]:
    """task_features.json, its chosen feature, and how and under which name the effect it was ranked by is shown."""
    found = stored.read("task_features.json") or {"features": [], "selected": []}
    top = next((one for one in found["features"] if one["name"] in found["selected"]), {})
    loglik = found.get("ranked_by") == "loglik"
    return found, top, LOGLIK if loglik else stored.metric, "delta_loglik" if loglik else "delta"


def a_causal_one_exists(stored: Stored) -> Finding:
    """The candidates' effects differ, permutation p < 0.05, and that of the chosen one is positive."""
    found, top, _, effect = _features(stored)
    if not top or "evidence" not in found:
        return Finding()
    p, reliability = (found["evidence"][name][found["ranked_by"]] for name in ("differ_p", "reliability"))
    verdict = SUPPORTED if p is not None and p < LEVEL and top[effect] > 0 else OPEN
    shown = "not defined" if reliability is None else number(reliability, 2)
    return Finding(verdict, f"candidates differ: p {p_value(p)}; split-half reliability {shown}")


def is_confirmed(stored: Stored) -> Finding:
    """Its effect on samples that had no part in choosing it lies above zero."""
    _, top, show, effect = _features(stored)
    name = "confirmation_loglik" if effect == "delta_loglik" else "confirmation"
    if (mean := top.get(name, top.get("confirmation_delta"))) is None:
        return Finding()
    found = stored.judged(mean, top.get(f"{name}_low"), top.get(f"{name}_high"), show)
    return found._replace(numbers=f"{top['name']}: {found.numbers}")


def beats_placebos(stored: Stored) -> Finding:
    """As many placebos of each kind as there were candidates would reach its effect with p < 0.05."""
    if not (placebos := _features(stored)[0].get("evidence", {}).get("placebos")):
        return Finding()
    found = {f"{one['n']} placebos, {kind}": one.get("p_best", one["p"]) for kind, one in placebos.items()}
    numbers = "; ".join(f"{kind}: p {p_value(p)}" for kind, p in found.items())
    beaten = all(p is not None and p < LEVEL for p in found.values())
    return Finding(SUPPORTED if beaten else OPEN, numbers)


def is_stable(stored: Stored) -> Finding:
    """One feature is on top on all sources, by chance in under 5 %. Not supported: they differ, though each keeps its
    own in 95 % of resamples."""
    found = stored.read("stability/summary.json")
    if (chance := found and found["agreement"][-1].get("same_top1_by_chance")) is None:
        return Finding()
    sources = [one for one in found["top1"] if one["source"] != "all"]
    tops, kept = {one["top"] for one in sources}, min(one["kept"] for one in sources)
    numbers = f"{len(tops)} on {len(sources)} sources; the same by chance in {100 * chance:.0f} %"
    numbers += f"; each kept in {100 * kept:.0f} % of resamples or more"
    if len(tops) == 1:
        return Finding(SUPPORTED if chance < LEVEL else OPEN, numbers)
    return Finding(AGAINST if kept >= 1 - LEVEL else OPEN, numbers)


def depth(stored: Stored) -> Finding:
    """Of the tested features math has a tenth or more in each third of the depth, another task a tenth or less in the
    first."""
    features, recall = _features(stored)[0]["features"], stored.read("recall.json")
    if not features or not recall or stored.task not in ("math", "translation", "summarization"):
        return Finding()
    thirds = pd.Series([one["layer"] for one in features]) * 3 // recall["model_layers"]
    shares = thirds.value_counts(normalize=True).reindex(range(3), fill_value=0.0)
    numbers = f"{', '.join(f'{100 * share:.0f}' for share in shares)} % in the thirds of the depth"
    if len({layer * 3 // recall["model_layers"] for layer in recall["layers"]}) < 3:
        return Finding(OPEN, f"{numbers}; one has no SAE")
    holds = shares.min() >= 0.1 if stored.task == "math" else shares[0] <= 0.1
    return Finding(SUPPORTED if holds else AGAINST, numbers)


def follows_coverage(stored: Stored) -> Finding:
    """Never from one run: no arm uses fewer SAEs, and the best of more candidates is larger by luck alone."""
    (found, _, show, effect), recall = _features(stored), stored.read("recall.json")
    if not found["features"] or not recall or len(recall["layers"]) < 2:
        return Finding()
    layers, table = sorted(recall["layers"]), pd.DataFrame(found["features"])
    middle = len(layers) // 2
    parts = {"all layers": layers, "the earlier half": layers[:middle], "the later half": layers[middle:]}
    inside = {part: table[table["layer"].isin(of)][effect].max() for part, of in parts.items()}
    best = [f"{show.show(most, signed=True)} on {part}" for part, most in inside.items()]
    return Finding(OPEN, f"largest effect in {show.unit}: {', '.join(best)}")


# ---- the claims ------------------------------------------------------------------------------------------

CLAIMS: dict[str, Callable[[Stored], Finding]] = {
    "Few features are recalled": few_recalled,
    "A causal feature exists": a_causal_one_exists,
    "It survives confirmation": is_confirmed,
    "It survives placebos": beats_placebos,
    "Training on the pool helps (a condition)": partial(data_matter, better="full", worse="original"),
    "Clean data beat corrupted (a condition)": partial(data_matter, better="clean", worse="corrupted"),
    "IGDS beats Random": partial(beats, other="random"),
    "IGDS beats Loss": partial(beats, other="loss"),
    "IGDS beats IFD": partial(beats, other="ifd"),
    "IGDS beats ZIP": partial(beats, other="zip"),
    "IGDS beats Full": partial(beats_all, others={"full": "an epoch", "full_steps": "equal steps"}),
    "IGDS beats Random at every ratio": at_every_ratio,
    "One feature is best": partial(beats_all, others={"igds_k3": "k = 3", "igds_k5": "k = 5"}),
    "Recall helps": partial(beats, other="igds_unrecalled"),
    "The causal filter helps": partial(beats, other="igds_recalled"),
    "Activation follows the score": activation_follows_score,
    "The top feature is stable": is_stable,
    "Math is dispersed, other tasks mid to late": depth,
    "IGDS is cheaper than Loss": is_cheaper,
    "Nothing is forgotten": forgets_nothing,
    "Gains follow SAE coverage": follows_coverage,
}


def rule_of(claim: str) -> str:
    """When a claim is supported: the docstring of the function that judges it."""
    judge = CLAIMS[claim]
    return inspect.getdoc(judge.func if isinstance(judge, partial) else judge).replace("\n", " ")


def claims(root: Path | str) -> pd.DataFrame:
    """What the results under `root` (of a run, or a folder of results/reference) say of every claim.

    Columns: Claim, Task, Verdict, Numbers, Could tell (the smallest difference seen in 80 % of repetitions), Supported
    where (the rule; intervals have the run's confidence). A claim that was run on no task has one row.
    """
    found = []
    for file in sorted(Path(root).glob("*/manifest.json")):  # of each model
        store, facts = Store(file.parent), Store(file.parent).read(file.name)
        names, preset = ("confidence", "bootstrap", "seed"), facts["preset"]
        options = dict(zip(("confidence", "resamples", "seed"), map(preset.get, names), strict=True))
        found += [Stored(store, task, Metric(**shown), options) for task, shown in facts["metrics"].items()]
    several = len({stored.store.root for stored in found}) > 1
    names = [f"{task_title(one.task)}{f' ({one.store.root.name})' if several else ''}" for one in found]
    rows = [
        (claim, name, *judge(stored), rule_of(claim))
        for claim, judge in CLAIMS.items()
        for name, stored in zip(names, found, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["Claim", "Task", "Verdict", "Numbers", "Could tell", "Supported where"])
    run = table["Verdict"] != NOT_RUN
    table.loc[~run.groupby(table["Claim"]).transform("any"), "Task"] = "all"
    return table[run | (table["Task"] == "all")].drop_duplicates(["Claim", "Task"]).reset_index(drop=True)
