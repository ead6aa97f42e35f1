"""How arms, tasks, metrics and numbers are named and shown; and the paper's printed values."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml
from pandas import isna as missing

from igds_utils.tasks.base import Task

HERE = Path(__file__).parent
NAMES = yaml.safe_load((HERE / "names.yaml").read_text(encoding="utf8"))
SELECTORS, ABLATIONS = NAMES["paper"], NAMES["ablations"]  # of the paper's Tables 2 and 3
ARM = re.compile(r"(.+?)(?:@([\d.e-]+?))?(?:-s(\d+))?")  # selector, ratio, seed
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # characters; not tabs and line ends
PAPER_DIGITS = {"math": 1, "translation": 2, "summarization": 3}  # decimals that it prints
NOT_RUN = "not run at this scale"
NOT_JUDGED = "not judged"  # because there are too few trainings
NOTHING = "–"


@dataclass(frozen=True)
class Metric:
    """How a score is shown: stored value x `factor`; `unit` is that of a difference."""

    label: str
    unit: str
    factor: float
    digits: int

    def show(self, value: float | None, signed: bool = False) -> str:
        return number(value if missing(value) else value * self.factor, self.digits, signed)

    def show_interval(self, value, low=None, high=None, signed: bool = False) -> str:
        """`12.5 [3.1, 21.9]`; the brackets are left out where the interval is unknown."""
        text, low, high = (self.show(one, signed) for one in (value, low, high))
        return text if NOTHING in (text, low, high) else f"{text} [{low}, {high}]"

    def show_of(self, record: dict, name: str, signed: bool = False) -> str:
        """A record's `name` with its interval; a dash where it has none."""
        return self.show_interval(*map(record.get, ends(name)), signed)

    def show_several(self, values: Sequence[float]) -> str:
        """One after the other; a dash for less than two."""
        return ", ".join(map(self.show, values)) if len(values) > 1 else NOTHING

    def column(self, table: pd.DataFrame, names: list[str], signed: bool = False) -> list[str]:
        """Texts of the rows of a table; names: the columns of value, low and high end."""
        rows = table.reindex(columns=names).to_numpy()
        return [self.show_interval(*row, signed=signed) for row in rows]


POINTS = Metric("%", "points", 100, 1)
SHARE = Metric("%", "points", 100, 0)  # of samples
LOGLIK = Metric("log-likelihood", "nats a token", 1, 3)
ACTIVATION = Metric("activation", "", 1, 2)
RHO = Metric("ρ", "", 1, 2)


def ends(name: str) -> list[str]:
    """Names of a value and of both ends of its interval."""
    return [name, f"{name}_low", f"{name}_high"]


def effect_of(ranked_by: str, metric: Metric) -> tuple[Metric, list[str], list[str]]:
    """How an effect is shown, and its columns in task_features.json: validation, confirmation.

    ranked_by: "score", of the task, which `metric` shows, or "loglik".
    """
    loglik = ranked_by == "loglik"
    names = ends("delta_loglik" if loglik else "delta")
    again = [f"confirmation_{name.removeprefix('delta_')}" for name in names]
    return LOGLIK if loglik else metric, names, again


def metric_of(task: Task, samples: int = 1) -> Metric:
    """The display of a task's main metric; samples: completions an item, more make a pass@k."""
    label, percent = task.metric_label, "%" in task.metric_label
    if samples > 1 and task.metric == "accuracy":
        label = f"pass@{samples} {label}"
    digits = {"chrf": 1, "comet": 2}.get(task.metric, 1 if percent else 3)
    return Metric(label, "points" if percent else label.split(",")[0], task.scale, digits)


def at_main_ratio(records: list[dict]) -> dict[str, dict]:
    """Records of `evaluation.summarise` by selector, those of the curve left out."""
    return {record["selector"]: record for record in records if record["main"]}


def number(value: float | None, digits: int = 1, signed: bool = False) -> str:
    """Text of a number with a true minus sign; an unknown one is a dash."""
    if missing(value):
        return NOTHING
    rounded = round(float(value), digits) + 0.0
    return f"{rounded:{'+' if signed and rounded else ''},.{digits}f}".replace("-", "−")


def p_value(value: float | None) -> str:
    """Text of a p value: three decimals, or that it is smaller."""
    return "<0.001" if not missing(value) and value < 0.001 else number(value, 3)


def correlation(found: dict) -> str:
    """Text of a rank correlation (`stats.Correlation` as a dict)."""
    if missing(found["rho"]):
        return "no rank correlation"
    text = f"ρ = {RHO.show_interval(found['rho'], found['low'], found['high'])}"
    if missing(found["p_value"]):
        return text
    p = p_value(found["p_value"])
    return f"{text}, n = {found['n']}, p {p if p.startswith('<') else f'= {p}'}"


def selector_title(selector: str) -> str:
    return (SELECTORS | NAMES["more"]).get(selector, selector)


def selector_of(arm: str) -> str:
    """`igds@0.5-s1` -> `igds`."""
    return ARM.fullmatch(arm)[1]


def without_seed(arm: str) -> str:
    """`igds@0.5-s1` -> `igds@0.5`."""
    return re.sub(r"-s\d+$", "", arm)


def arm_title(arm: str) -> str:
    """`igds@0.5-s1` -> `IGDS 50 %, seed 1`."""
    selector, ratio, seed = ARM.fullmatch(arm).groups()
    share = f" {100 * float(ratio):g} %" if ratio else ""
    return f"{selector_title(selector)}{share}{f', seed {seed}' if seed else ''}"


def task_title(task: str) -> str:
    return task.replace("_", " ").capitalize()


def paper_values() -> dict:
    """The numbers printed in the paper (paper_values.yaml beside this module)."""
    return yaml.safe_load((HERE / "paper_values.yaml").read_text(encoding="utf8"))


def visible(text: str) -> str:
    r"""Text for terminals and tables, which control characters could steer: they become \x1b."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def duration(seconds: float) -> str:
    """12 s, 3 min 05 s, 2 h 07 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
