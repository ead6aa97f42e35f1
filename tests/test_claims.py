"""The claims table: its verdicts on hand-made results."""

from dataclasses import asdict

import pandas as pd
import pytest

from igds_utils.config.config import PROJECT, load_preset
from igds_utils.core.store import Store
from igds_utils.display import Metric
from igds_utils.reporting import claims as rules
from igds_utils.reporting import report
from igds_utils.reporting.claims import CLAIMS, Stored, claims, minimum_detectable_effect

POINTS = Metric("accuracy (%)", "points", 100, 1)
REFERENCES = {file.parents[1] for file in PROJECT.glob("results/reference/*/*/manifest.json")}
ABOVE, BELOW, OPEN = (0.1, 0.02, 0.18), (-0.1, -0.18, -0.02), (0.01, -0.07, 0.09)
YES, NO, UNTOLD = "supported", "not supported", "cannot tell"


@pytest.fixture
def judge(tmp_path):
    """The finding on a claim after these products were stored."""

    def judge(claim, task="math", **products):
        store, (rule, *given) = Store(tmp_path), CLAIMS[claim]
        for name, product in products.items():
            folder = "" if name == "checks" else f"{task}/"
            suffix = "parquet" if isinstance(product, pd.DataFrame) else "json"
            store.write(f"{folder}{name}.{suffix}", product)
        return rules.judge(rule, Stored(store, task, POINTS), *given)

    return judge


def arm(selector, seeds=3, ratio=0.5, main=True, **versus):
    found = {"arm": f"{selector}@{ratio}", "selector": selector, "ratio": ratio, "main": main}
    for name, ends in versus.items():
        found |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
    return found | {"seeds": [*range(seeds)]}


@pytest.mark.parametrize("score, loglik, igds, draws, verdict", [
    (ABOVE, None, 2, 5, YES), (BELOW, None, 2, 5, NO), (OPEN, None, 2, 5, UNTOLD),
    (OPEN, ABOVE, 2, 5, YES), (OPEN, BELOW, 2, 5, NO),  # where the score cannot tell
    (ABOVE, BELOW, 2, 5, YES), (OPEN, OPEN, 2, 5, UNTOLD),
    (ABOVE, ABOVE, 1, 5, UNTOLD),  # IGDS was trained once
    (ABOVE, ABOVE, 3, 4, UNTOLD),  # too few draws of Random
])  # fmt: skip
def test_igds_against_random_is_judged_by_its_interval(judge, score, loglik, igds, draws, verdict):
    versus = {"vs_random": score} | ({"loglik_vs_random": loglik} if loglik else {})
    records = [arm("random", draws), arm("igds", igds, **versus) | {"above_random": 4}]
    found = judge("IGDS beats Random", summary=records)
    assert found.verdict == verdict
    assert POINTS.show_interval(*score, signed=True) in found.numbers
    assert f"above 4 of {draws} draws" in found.numbers
    once = igds < 2 or draws < 5
    assert ("not judged" in found.numbers) == once and bool(found.could_tell) != once


def test_what_was_not_run_says_so_for_every_claim(judge):
    assert {judge(claim).verdict for claim in CLAIMS} == {"not run"}
    assert judge("IGDS beats Loss", summary=[arm("igds")]).verdict == "not run"
    loss = [arm("igds"), arm("loss")]  # as version 0.1 kept it
    assert judge("IGDS beats Loss", summary=loss).verdict == UNTOLD


def test_what_could_have_been_told(judge):
    # half a width of 8 points at 1.96 standard errors; seen in four of five repetitions at 2.80
    expected = pytest.approx(0.08 * (1.96 + 0.8416) / 1.96, rel=1e-4)
    assert minimum_detectable_effect(-0.07, 0.09) == expected
    span = {"name": "clean - corrupted", "gain": 0.2, "low": 0.1, "high": 0.3}
    arms = [arm("loss"), arm("igds", vs_loss=OPEN)]
    found = judge("IGDS beats Loss", summary=arms, checks={"math": [span]})
    assert found.could_tell == "11.4 points (0.6 spans)"


@pytest.mark.parametrize(
    ("k3", "k5", "verdict"),
    [(ABOVE, ABOVE, YES), (ABOVE, OPEN, UNTOLD), (OPEN, BELOW, NO), (ABOVE, None, YES)],
)
def test_a_claim_of_several_parts_holds_only_if_all_do(judge, k3, k5, verdict):
    run = {"igds_k3": k3} | ({"igds_k5": k5} if k5 else {})
    best = arm("igds", **{f"vs_{name}": ends for name, ends in run.items()})
    assert judge("One feature is best", summary=[*map(arm, run), best]).verdict == verdict


def test_every_ratio_must_hold(judge):
    ratios = [arm("random", 5), arm("random", 5, 0.2, False), arm("igds", vs_random=ABOVE)]
    claim, fifth = "IGDS beats Random at every ratio", arm("igds", 3, 0.2, False, vs_random=BELOW)
    found = judge(claim, summary=[*ratios, fifth])
    assert "50 %: +10.0" in found.numbers and "20 %: −10.0" in found.numbers
    assert found.verdict == NO and judge(claim, summary=ratios).verdict == "not run"


@pytest.mark.parametrize("low, high, passed, verdict", [
    (0.1, 0.3, True, YES), (-0.3, -0.1, False, NO), (-0.1, 0.3, False, UNTOLD),
    (0.1, 0.3, None, UNTOLD),  # trained once
])  # fmt: skip
def test_whether_data_matter_is_judged_from_two_trainings(judge, low, high, passed, verdict):
    check = {"name": "clean - corrupted", "gain": 0.2, "low": low, "high": high, "passed": passed}
    found = judge("Clean data beat corrupted (a condition)", checks={"math": [check]})
    assert found.verdict == verdict and ("trained once" in found.numbers) == (passed is None)


def features(quantity="score", **more):
    top = {"name": "l9_p2", "layer": 9, "delta": 0.1, "delta_loglik": 0.2}
    top |= {"confirmation_delta": 0.05, "confirmation_low": -0.01, "confirmation_high": 0.1}
    told = {"": 0.2, "_low": 0.1, "_high": 0.3}
    top |= {f"confirmation_loglik{end}": value for end, value in told.items()}
    rest = [top | {"name": f"l{layer}_p1", "layer": layer, "delta": 0.0} for layer in (9, 15, 21, 21)]
    return {"features": [top, *rest], "selected": ["l9_p2"], "ranked_by": quantity, **more}


def test_a_feature_is_confirmed_for_what_it_was_ranked_by(judge):
    for quantity, verdict in (("score", UNTOLD), ("loglik", YES)):
        found = judge("It survives confirmation", task_features=features(quantity))
        assert found.verdict == verdict


@pytest.mark.parametrize("p, reliability, placebo, verdict", [
    (0.34, 0.12, 0.2, UNTOLD), (0.001, 0.9, 0.01, YES),
])  # fmt: skip
def test_equal_candidates_and_placebos_prove_nothing(judge, p, reliability, placebo, verdict):
    placebos = {kind: {"n": 9, "p": placebo} for kind in ("random direction", "not recalled")}
    facts = {"differ_p": {"score": p}, "reliability": {"score": reliability}, "placebos": placebos}
    for claim in ("A causal feature exists", "It survives placebos"):
        assert judge(claim, task_features=features(evidence=facts)).verdict == verdict


def test_depth_recall_and_coverage(judge):
    recall = {"layers": [9, 15, 21], "model_layers": 24}
    recall |= {"n_candidates": 5, "n_features_total": 9000, "basis_points": 5.6}
    claim, few = "Math is dispersed, other tasks mid to late", "Few features are recalled"
    found = judge(claim, task_features=features(), recall=recall)
    assert found[:2] == (UNTOLD, "0, 60, 40 % in the thirds of the depth; one has no SAE")
    known = {"task_features": features(), "recall": recall | {"layers": [3, 9, 15, 21]}}
    assert judge(claim, **known).verdict == NO
    # in the middle and late layers, as the paper says of other tasks
    assert judge(claim, "translation", **known).verdict == YES
    assert judge(few).verdict == YES
    assert judge(few, recall=recall | {"basis_points": 101.0}).verdict == NO
    of_layers = judge("Gains follow SAE coverage")
    assert of_layers.verdict == UNTOLD and "+10.0 on all layers" in of_layers.numbers


def test_the_correlation_is_judged_from_two_trainings(judge):
    arms = [arm("full", 2), arm("igds", 2), arm("original", 1)]
    few = {"rho": 0.9, "low": None, "high": None, "p_value": 0.04, "n": 5}
    many = few | {"p_value": None, "low": -0.1, "high": 0.97}
    cases = [(few, arms, YES), (few | {"rho": -0.9}, arms, NO), (many, arms, UNTOLD)]
    for found, trained, verdict in [*cases, (few, [*arms, arm("loss", 1)], UNTOLD)]:
        known = {"summary": trained, "correlation": {"trained": found}}
        assert judge("Activation follows the score", **known).verdict == verdict


@pytest.mark.parametrize("tops, kept, chance, verdict", [
    ("aaa", 0.96, 0.01, YES), ("aaa", 0.96, 0.2, UNTOLD),
    ("aab", 0.96, 0.01, NO), ("aab", 0.4, 0.01, UNTOLD),
])  # fmt: skip
def test_stability_is_held_against_chance(judge, tops, kept, chance, verdict):
    top1 = [{"source": str(i), "top": top, "kept": kept} for i, top in enumerate(tops)]
    product = {"agreement": [{"same_top1_by_chance": chance}], "top1": top1}
    assert judge("The top feature is stable", **{"stability/summary": product}).verdict == verdict


def test_forgetting_is_judged_from_two_trainings(judge):
    same = pd.DataFrame({"benchmark": "mmlu", "subject": "s", "item": range(400)})
    same["score"] = [1.0, 0.0] * 200
    worse = same.assign(score=0.0)
    for after, seeds, verdict in ((same, 2, YES), (worse, 2, NO), (worse, 1, UNTOLD)):
        known = {f"arms/{name}/capabilities": after for name in ("igds@0.5", "igds@0.5-s1")}
        known |= {"arms/original/capabilities": same, "summary": [arm("igds", seeds)]}
        assert judge("Nothing is forgotten", **known).verdict == verdict


def test_the_table_has_a_row_a_claim_and_task(tmp_path):
    preset = load_preset("smoke", tasks=["math", "translation"])
    facts = {"preset": preset.model_dump(), "notebooks": {}}
    facts |= {"machine": {"gpus": 1, "threads": 2, "processor": "x"}}
    facts |= {"metrics": dict.fromkeys(preset.tasks, asdict(POINTS))}

    def table(model, against_random):
        store = Store(tmp_path / "run" / model)
        store.write("manifest.json", facts)
        store.write("math/summary.json", [arm("random", 5), arm("igds", vs_random=against_random)])
        return claims(tmp_path / "run").set_index("Claim")

    one = table(preset.model, ABOVE)
    assert set(one.index) == set(CLAIMS) and one["Supported where"].str.len().min() > 20
    assert one.loc["IGDS beats Random", ["Task", "Verdict"]].tolist() == ["Math", YES]
    assert one.loc["IGDS beats Loss", ["Task", "Verdict"]].tolist() == ["all", "not run"]
    both = table("other", BELOW).loc["IGDS beats Random"].set_index("Task")["Verdict"]
    assert both.to_dict() == {"Math (other)": NO, f"Math ({preset.model})": YES}
    assert "Math (other): not supported" in report.overview([tmp_path / "run"])


@pytest.mark.parametrize("root", sorted(REFERENCES), ids=lambda root: root.name)
def test_the_readme_has_the_claims_of_every_reference(root):
    page = (PROJECT / "results/README.md").read_text(encoding="utf8")
    assert report.at_a_glance(root)["Outcome"] in page and len(claims(root))
