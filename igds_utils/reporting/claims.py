"""The paper's claims: what a run's stored results say of each, by stated rules.

A rule is a function of what is stored; its docstring says when the claim is supported.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from scipy import stats

from igds_utils import display
from igds_utils.core.store import Store
from igds_utils.data.stats import paired_difference
from igds_utils.display import LOGLIK, Metric, number, p_value
from igds_utils.training.evaluation import DRAWS

SUPPORTED, AGAINST, OPEN, NOT_RUN = "supported", "not supported", "cannot tell", "not run"
LEVEL, POWER = 0.05, 0.8
MARGIN = 0.02  # of general questions: a smaller loss is none


class Finding(NamedTuple):
    """A verdict, its numbers, and the smallest difference that could have been told."""

    verdict: str = NOT_RUN
    numbers: str = ""
    could_tell: str = ""


@dataclass(frozen=True)
class Stored:
    """What a run stored of one task; `options` are those of `stats.interval`."""

    store: Store
    task: str
    metric: Metric
    options: dict[str, Any] = field(default_factory=dict)

    def read(self, name: str) -> Any:
        return self.store.read(f"{self.task}/{name}")

    def arms(self, selector: str) -> list[dict]:
        """Records of summary.json of a selector, the main ratio first, then by ratio."""
        found = [one for one in self.read("summary.json") if one["selector"] == selector]
        return sorted(found, key=lambda one: (not one.get("main", True), one["ratio"] or 0))

    def checks(self) -> dict[str, dict]:
        made = self.store.read("checks.json") if self.store.has("checks.json") else {}
        return {one["name"]: one for one in made.get(self.task, [])}

    def judged(self, mean, low, high, show: Metric) -> Finding:
        """A difference with its interval, and what it could have told."""
        numbers = f"{show.show_interval(mean, low, high, signed=True)} {show.unit}"
        if low is None or high is None:
            return Finding(OPEN, numbers)
        size = minimum_detectable_effect(low, high, self.options.get("confidence", 0.95))
        span = self.checks().get("clean - corrupted", {}).get("gain", 0)
        told = f"{show.show(size)} {show.unit}"
        if show is self.metric and span > 0:
            told += f" ({size / span:.1f} spans)"
        return Finding(by_interval(low, high), numbers, told)


def judge(rule: Callable[..., Finding], stored: Stored, *given) -> Finding:
    """What a rule says; "not run" where a product, an arm or a field is not there."""
    try:
        return rule(stored, *given)
    except (FileNotFoundError, LookupError):
        return Finding()


def minimum_detectable_effect(low: float, high: float, confidence: float = 0.95) -> float:
    """The true difference of which such an interval leaves out zero in 80 % of cases."""
    z = stats.norm.ppf([(1 + confidence) / 2, POWER])
    return float((high - low) / 2 * z.sum() / z[0])


def by_interval(low: float, high: float, border: float = 0.0) -> str:
    """Supported above the border, not supported below it, open in between."""
    return SUPPORTED if low > border else AGAINST if high < border else OPEN


def beats(stored: Stored, other: str, place: int = 0) -> Finding:
    """The paired difference of IGDS and the other lies above zero, below it the claim is not
    supported; of IGDS two trainings or more, of the other two, of Random five draws. Where the
    score's interval covers zero, that of the test log-likelihood decides."""
    igds = stored.arms("igds")[place]
    same = [one for one in stored.arms(other) if one["ratio"] in (None, igds["ratio"])]
    trainings, draws = len(igds["seeds"]), len(same[0]["seeds"])
    measures = ((f"vs_{other}", stored.metric), (f"loglik_vs_{other}", LOGLIK))
    found = [
        stored.judged(*map(igds.get, display.ends(name)), show)
        for name, show in measures
        if igds.get(name) is not None
    ]
    numbers = [one.numbers for one in found]
    if other == "random" and igds.get("above_random") is not None:
        numbers.append(f"above {igds['above_random']} of {draws} draws")
    if trainings < 2 or draws < (DRAWS if other == "random" else 2):
        numbers.append(f"not judged: {trainings} and {draws} trainings")
        found = []
    if found and found[0].verdict != OPEN:
        found = found[:1]  # the likelihood decides only where the score cannot tell
    verdict = found[-1].verdict if found else OPEN
    told = "; ".join(one.could_tell for one in found)
    return Finding(verdict, "; ".join(numbers) or "the difference was not stored", told)


def together(found: dict[str, Finding]) -> Finding:
    """One finding of several that must all hold; those that were not run are left out."""
    run = {name: one for name, one in found.items() if one.verdict != NOT_RUN}
    worst = (AGAINST, OPEN, SUPPORTED).index
    verdict = min((one.verdict for one in run.values()), key=worst, default=NOT_RUN)
    numbers, told = (
        "\n".join(f"{name}: {one[part]}" for name, one in run.items() if one[part])
        for part in (1, 2)
    )
    return Finding(verdict, numbers, told)


def at_every_ratio(stored: Stored) -> Finding:
    """At each ratio that was run the difference to Random lies above zero, by the rule for the
    main ratio."""
    ratios = [f"{100 * arm['ratio']:g} %" for arm in stored.arms("igds")]
    found = {one: judge(beats, stored, "random", i) for i, one in enumerate(ratios)}
    return together(found) if len(ratios) > 1 else Finding()


def beats_all(stored: Stored, others: dict[str, str]) -> Finding:
    """Each paired difference that was run lies above zero, by the rule for a single other arm."""
    return together({title: judge(beats, stored, one) for one, title in others.items()})


def data_matter(stored: Stored, pair: str) -> Finding:
    """The paired difference lies above zero, with two trainings of each or more; clean minus
    corrupted is the span."""
    check = stored.checks()[pair]
    found = stored.judged(check["gain"], check["low"], check["high"], stored.metric)
    if check["passed"] is None:
        return Finding(OPEN, f"{found.numbers}; not judged: trained once")
    return found


def forgets_nothing(stored: Stored) -> Finding:
    """IGDS minus Original on general questions lies above −2 points, with two trainings or more."""
    arm, answers = stored.arms("igds")[0], {}
    for file in (stored.store.root / stored.task).glob("arms/*/capabilities.parquet"):
        table = pd.read_parquet(file)
        keys = table[["benchmark", "subject", "item"]].astype(str).agg(" ".join, axis=1)
        answers[file.parent.name] = table.set_index(keys)["score"]
    names = [f"{arm['arm']}-s{seed}" if seed else arm["arm"] for seed in arm["seeds"]]
    ours = {name: answers[name] for name in names if name in answers}
    if not ours:
        return Finding()
    moved = paired_difference(pd.DataFrame(ours), answers["original"], **stored.options)
    found = stored.judged(*moved[:3], display.POINTS)
    numbers = f"{found.numbers} on {moved.n:,} questions"
    if len(ours) < 2:
        return Finding(OPEN, f"{numbers}; not judged: one training was asked")
    return Finding(by_interval(moved.low, moved.high, -MARGIN), numbers, found.could_tell)


def activation_follows_score(stored: Stored) -> Finding:
    """Spearman's ρ of median activation and score is positive, p < 0.05 or interval above zero;
    two trainings each."""
    rho = stored.read("correlation.json")["trained"]
    if rho["rho"] is None:
        return Finding()
    numbers, arms = display.correlation(rho), stored.read("summary.json")
    if min(len(one["seeds"]) for one in arms if one["selector"] != "original") < 2:
        return Finding(OPEN, f"{numbers}; not judged: an arm was trained once")
    if rho["p_value"] is None:  # many arms
        return Finding(by_interval(rho["low"], rho["high"]), numbers)
    sign = SUPPORTED if rho["rho"] > 0 else AGAINST
    return Finding(sign if rho["p_value"] < LEVEL else OPEN, numbers)


def is_cheaper(stored: Stored) -> Finding:
    """Its selection step took fewer seconds than that of Loss."""
    seconds = stored.read("selection_costs.parquet").set_index("selector")["seconds"]
    verdict = SUPPORTED if seconds["igds"] < seconds["loss"] else AGAINST
    return Finding(verdict, f"{seconds['igds']:,.1f} s, Loss {seconds['loss']:,.1f} s")


def few_recalled(stored: Stored) -> Finding:
    """At most 100 of 10,000 features are recalled (the paper: 0.35 to 9.2)."""
    recall = stored.read("recall.json")
    share = recall["basis_points"]
    counts = f"{recall['n_candidates']:,} of {recall['n_features_total']:,}"
    return Finding(SUPPORTED if share <= 100 else AGAINST, f"{counts}: {number(share, 2)} ‱")


def _features(stored: Stored) -> tuple:
    """task_features.json, its chosen feature, and `effect_of` what it was ranked by."""
    found = stored.read("task_features.json")
    top = [one for one in found["features"] if one["name"] in found["selected"]][0]
    by = found.get("ranked_by", "score")
    return found, top, display.effect_of(by, stored.metric)


def a_causal_one_exists(stored: Stored) -> Finding:
    """The candidates' effects differ, permutation p < 0.05, and that of the chosen one is
    positive."""
    found, top, (_, names, _) = _features(stored)
    by, evidence = found["ranked_by"], found["evidence"]
    p, reliability = evidence["differ_p"][by], evidence["reliability"][by]
    reliability = "not defined" if reliability is None else number(reliability, 2)
    holds = p is not None and p < LEVEL and top[names[0]] > 0
    numbers = f"candidates differ: p {p_value(p)}; split-half reliability {reliability}"
    return Finding(SUPPORTED if holds else OPEN, numbers)


def is_confirmed(stored: Stored) -> Finding:
    """Its effect on samples that had no part in choosing it lies above zero."""
    _, top, (show, _, again) = _features(stored)
    found = stored.judged(*map(top.get, again), show)
    return found._replace(numbers=f"{top['name']}: {found.numbers}")


def beats_placebos(stored: Stored) -> Finding:
    """On the confirmation set its effect lies beyond those of placebos of each kind, rank
    p < 0.05."""
    placebos = _features(stored)[0]["evidence"]["placebos"]
    if not placebos:
        return Finding()
    said, beaten = [], True
    for kind, one in placebos.items():
        said.append(f"{one['n']} placebos, {kind}: p {p_value(one['p'])}")
        beaten = beaten and one["p"] < LEVEL
    return Finding(SUPPORTED if beaten else OPEN, "; ".join(said))


def is_stable(stored: Stored) -> Finding:
    """One feature is on top on all sources, by chance in under 5 %. Not supported: they differ,
    though each keeps its own in 95 % of resamples."""
    found = stored.read("stability/summary.json")
    chance = found["agreement"][-1]["same_top1_by_chance"]
    tops, kept = {one["top"] for one in found["top1"]}, min(one["kept"] for one in found["top1"])
    numbers = f"{len(tops)} on {len(found['top1'])} sources"
    numbers += f"; the same by chance in {100 * chance:.0f} %"
    numbers += f"; each kept in {100 * kept:.0f} % of resamples or more"
    if len(tops) == 1:
        return Finding(SUPPORTED if chance < LEVEL else OPEN, numbers)
    return Finding(AGAINST if kept >= 1 - LEVEL else OPEN, numbers)


def depth(stored: Stored) -> Finding:
    """Of the tested features math has a tenth or more in each third of the depth, another task a
    tenth or less in the first."""
    if stored.task not in ("math", "translation", "summarization"):
        return Finding()
    tested, recall = _features(stored)[0]["features"], stored.read("recall.json")
    blocks = recall["model_layers"]
    thirds = pd.Series([one["layer"] * 3 // blocks for one in tested])
    shares = thirds.value_counts(normalize=True).reindex(range(3), fill_value=0.0)
    numbers = ", ".join(f"{100 * share:.0f}" for share in shares)
    numbers += " % in the thirds of the depth"
    if len({layer * 3 // blocks for layer in recall["layers"]}) < 3:
        return Finding(OPEN, f"{numbers}; one has no SAE")
    holds = shares.min() >= 0.1 if stored.task == "math" else shares[0] <= 0.1
    return Finding(SUPPORTED if holds else AGAINST, numbers)


def follows_coverage(stored: Stored) -> Finding:
    """Never from one run: no arm uses fewer SAEs, and the best of more candidates is larger by
    luck alone."""
    found, _, (show, names, _) = _features(stored)
    layers = sorted(stored.read("recall.json")["layers"])
    middle, table, said = len(layers) // 2, pd.DataFrame(found["features"]), []
    earlier, later = layers[:middle], layers[middle:]
    parts = {"all layers": layers, "the earlier half": earlier, "the later half": later}
    for part, kept in parts.items():
        best = table.loc[table["layer"].isin(kept), names[0]].max()
        said.append(f"{show.show(best, signed=True)} on {part}")
    return Finding(OPEN, f"largest effect in {show.unit}: {', '.join(said)}")


MORE = {"igds_k3": "k = 3", "igds_k5": "k = 5"}
CLAIMS: dict[str, tuple] = {  # a claim's rule, and what it is given
    "Few features are recalled": (few_recalled,),
    "A causal feature exists": (a_causal_one_exists,),
    "It survives confirmation": (is_confirmed,),
    "It survives placebos": (beats_placebos,),
    "Training on the pool helps (a condition)": (data_matter, "full - original"),
    "Clean data beat corrupted (a condition)": (data_matter, "clean - corrupted"),
    "IGDS beats Random": (beats, "random"),
    "IGDS beats Loss": (beats, "loss"),
    "IGDS beats IFD": (beats, "ifd"),
    "IGDS beats ZIP": (beats, "zip"),
    "IGDS beats Full": (beats_all, {"full": "an epoch", "full_steps": "equal steps"}),
    "IGDS beats Random at every ratio": (at_every_ratio,),
    "One feature is best": (beats_all, MORE),
    "Recall helps": (beats, "igds_unrecalled"),
    "The causal filter helps": (beats, "igds_recalled"),
    "Activation follows the score": (activation_follows_score,),
    "The top feature is stable": (is_stable,),
    "Math is dispersed, other tasks mid to late": (depth,),
    "IGDS is cheaper than Loss": (is_cheaper,),
    "Nothing is forgotten": (forgets_nothing,),
    "Gains follow SAE coverage": (follows_coverage,),
}


def claims(root: Path | str) -> pd.DataFrame:
    """What the results under `root` (of a run, or in results/reference) say of every claim.

    Could tell: `minimum_detectable_effect`. Supported where: the rule. A claim that was run
    on no task has one row.
    """
    files, found, rows = sorted(Path(root).glob("*/manifest.json")), {}, []  # of each model
    for file in files:
        store, facts = Store(file.parent), Store(file.parent).read(file.name)
        preset, model = facts["preset"], f" ({file.parent.name})" * (len(files) > 1)
        options = {"confidence": preset["confidence"], "seed": preset["seed"]}
        options["resamples"] = preset["bootstrap"]
        for task, shown in facts["metrics"].items():
            stored = Stored(store, task, Metric(**shown), options)
            found[display.task_title(task) + model] = stored
    for claim, (rule, *given) in CLAIMS.items():
        judged = {name: judge(rule, stored, *given) for name, stored in found.items()}
        run = {name: one for name, one in judged.items() if one.verdict != NOT_RUN}
        run, told = run or {"all": Finding()}, inspect.getdoc(rule).replace("\n", " ")
        rows += [(claim, name, *one, told) for name, one in run.items()]
    columns = ["Claim", "Task", "Verdict", "Numbers", "Could tell", "Supported where"]
    return pd.DataFrame(rows, columns=columns)
