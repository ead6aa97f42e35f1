"""The claims table: its verdicts on hand-made results, and that it judges no single training."""

import json
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


@pytest.fixture
def stored(tmp_path):
    """What a run stored of one task: written by the test."""
    return Stored(Store(tmp_path), "math", POINTS)


def arm(selector, seeds=3, ratio=0.5, main=True, **versus):
    found = {"arm": f"{selector}@{ratio}", "selector": selector, "ratio": ratio, "main": main, "seeds": [*range(seeds)]}
    for name, ends in versus.items():
        found |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
    return found


def judge(stored, claim, **products):
    for name, product in products.items():
        name, _, suffix = name.rpartition("_")
        stored.store.write(f"math/{name.replace('__', '/')}.{suffix}", product)
    rule, *given = CLAIMS[claim]
    return rules.judge(rule, stored, *given)


ABOVE, BELOW, OPEN = (0.1, 0.02, 0.18), (-0.1, -0.18, -0.02), (0.01, -0.07, 0.09)


@pytest.mark.parametrize("score, loglik, igds, draws, verdict", [
    (ABOVE, None, 2, 5, "supported"), (BELOW, None, 2, 5, "not supported"), (OPEN, None, 2, 5, "cannot tell"),
    (OPEN, ABOVE, 2, 5, "supported"), (OPEN, BELOW, 2, 5, "not supported"),  # where the score cannot tell
    (ABOVE, BELOW, 2, 5, "supported"), (OPEN, OPEN, 2, 5, "cannot tell"),
    (ABOVE, ABOVE, 1, 5, "cannot tell"),  # IGDS was trained once
    (ABOVE, ABOVE, 3, 4, "cannot tell"),  # too few draws of Random
])  # fmt: skip
def test_igds_against_random_is_judged_by_its_interval(stored, score, loglik, igds, draws, verdict):
    versus = {"vs_random": score} | ({"loglik_vs_random": loglik} if loglik else {})
    records = [arm("random", draws), arm("igds", igds, **versus) | {"above_random": 4}]
    found = judge(stored, "IGDS beats Random", summary_json=records)
    assert found.verdict == verdict
    assert found.numbers.startswith(POINTS.show_interval(*score, signed=True) + " points")
    assert f"above 4 of {draws} draws" in found.numbers
    once = igds < 2 or draws < 5
    assert ("not judged" in found.numbers) == once and bool(found.could_tell) != once


def test_what_was_not_run_says_so_for_every_claim(stored, tmp_path):
    assert {judge(stored, claim).verdict for claim in CLAIMS} == {"not run"}
    assert judge(stored, "IGDS beats Loss", summary_json=[arm("igds")]).verdict == "not run"
    loss = [arm("igds"), arm("loss")]  # as version 0.1 kept it
    assert judge(stored, "IGDS beats Loss", summary_json=loss)[:2] == ("cannot tell", "the difference was not stored")


def test_what_could_have_been_told_is_in_units_and_in_spans(stored):
    # half a width of 8 points at 1.96 standard errors; seen in four of five repetitions at 2.80
    assert minimum_detectable_effect(-0.07, 0.09) == pytest.approx(0.08 * (1.96 + 0.8416) / 1.96, rel=1e-4)
    stored.store.write("checks.json", {"math": [{"name": "clean - corrupted", "gain": 0.2, "low": 0.1, "high": 0.3}]})
    found = judge(stored, "IGDS beats Loss", summary_json=[arm("loss"), arm("igds", vs_loss=OPEN)])
    assert found.could_tell == "11.4 points (0.6 spans)"


def test_a_claim_of_several_parts_holds_only_if_all_do(stored):
    def verdict(k3, k5=None):
        records = [arm("igds_k3"), arm("igds", vs_igds_k3=k3, **({"vs_igds_k5": k5} if k5 else {}))]
        return judge(stored, "One feature is best", summary_json=records + ([arm("igds_k5")] if k5 else [])).verdict

    assert (verdict(ABOVE, ABOVE), verdict(ABOVE, OPEN), verdict(OPEN, BELOW)) == (
        "supported", "cannot tell", "not supported",
    )  # fmt: skip
    assert verdict(ABOVE) == "supported"  # k = 5 was not run
    ratios = [arm("random", 5), arm("random", 5, 0.2, False), arm("igds", vs_random=ABOVE)]
    claim, fifth = "IGDS beats Random at every ratio", arm("igds", 3, 0.2, False, vs_random=BELOW)
    found = judge(stored, claim, summary_json=[*ratios, fifth])
    assert found.verdict == "not supported" and "50 %: +10.0" in found.numbers and "20 %: −10.0" in found.numbers
    assert judge(stored, claim, summary_json=ratios).verdict == "not run"


@pytest.mark.parametrize("ends, passed, verdict", [
    ((0.1, 0.3), True, "supported"), ((-0.3, -0.1), False, "not supported"), ((-0.1, 0.3), False, "cannot tell"),
    ((0.1, 0.3), None, "cannot tell"),  # trained once
])  # fmt: skip
def test_whether_data_matter_is_judged_from_two_trainings(stored, ends, passed, verdict):
    check = {"name": "clean - corrupted", "gain": 0.2, "low": ends[0], "high": ends[1], "passed": passed}
    stored.store.write("checks.json", {"math": [check]})
    found = judge(stored, "Clean data beat corrupted (a condition)")
    assert found.verdict == verdict and ("trained once" in found.numbers) == (passed is None)


def features(quantity="score", **more):
    top = {"name": "l9_p2", "layer": 9, "delta": 0.1, "delta_loglik": 0.2}
    top |= {"confirmation_delta": 0.05, "confirmation_low": -0.01, "confirmation_high": 0.1}
    top |= {"confirmation_loglik": 0.2, "confirmation_loglik_low": 0.1, "confirmation_loglik_high": 0.3}
    rest = [{"name": f"l{layer}_p1", "layer": layer, "delta": 0.0, "delta_loglik": 0.0} for layer in (9, 15, 21, 21)]
    return {"features": [top, *rest], "selected": ["l9_p2"], "ranked_by": quantity, **more}


def test_a_feature_is_confirmed_for_what_it_was_ranked_by(stored):
    for quantity, verdict in (("score", "cannot tell"), ("loglik", "supported")):
        found = judge(stored, "It survives confirmation", task_features_json=features(quantity))
        assert found.verdict == verdict


@pytest.mark.parametrize("p, reliability, placebo, verdict", [
    (0.34, 0.12, 0.2, "cannot tell"), (0.001, 0.9, 0.01, "supported"),
])  # fmt: skip
def test_equal_candidates_and_placebos_prove_nothing(stored, p, reliability, placebo, verdict):
    placebos = {kind: {"n": 9, "p": placebo} for kind in ("random direction", "not recalled")}
    facts = {"differ_p": {"score": p}, "reliability": {"score": reliability}, "placebos": placebos}
    for claim in ("A causal feature exists", "It survives placebos"):
        assert judge(stored, claim, task_features_json=features(evidence=facts)).verdict == verdict


def test_depth_recall_and_coverage(stored):
    recall = {"layers": [9, 15, 21], "model_layers": 24}
    recall |= {"n_candidates": 5, "n_features_total": 9000, "basis_points": 5.6}
    claim = "Math is dispersed, other tasks mid to late"
    found = judge(stored, claim, task_features_json=features(), recall_json=recall)
    assert found[:2] == ("cannot tell", "0, 60, 40 % in the thirds of the depth; one has no SAE")
    assert judge(stored, claim, recall_json=recall | {"layers": [3, 9, 15, 21]}).verdict == "not supported"
    other = Stored(stored.store, "translation", POINTS)  # in the middle and late layers, as the paper says
    for name in ("task_features.json", "recall.json"):
        other.store.write(f"translation/{name}", stored.read(name))
    assert rules.judge(*CLAIMS[claim], other).verdict == "supported"
    assert judge(stored, few := "Few features are recalled").verdict == "supported"
    assert judge(stored, few, recall_json=recall | {"basis_points": 101.0}).verdict == "not supported"
    of_layers = judge(stored, "Gains follow SAE coverage")
    assert of_layers.verdict == "cannot tell" and "+10.0 on all layers" in of_layers.numbers


def test_correlation_stability_and_forgetting(stored):
    few = {"rho": 0.9, "low": None, "high": None, "p_value": 0.04, "n": 5}
    claim, arms = "Activation follows the score", [arm("full", 2), arm("igds", 2), arm("original", 1)]
    assert judge(stored, claim, summary_json=arms, correlation_json={"trained": few}).verdict == "supported"
    assert judge(stored, claim, summary_json=[*arms, arm("loss", 1)]).verdict == "cannot tell"
    stored.store.write("math/summary.json", arms)
    assert judge(stored, claim, correlation_json={"trained": few | {"rho": -0.9}}).verdict == "not supported"
    many = few | {"p_value": None, "low": -0.1, "high": 0.97}
    assert judge(stored, claim, correlation_json={"trained": many}).verdict == "cannot tell"

    def stable(tops, kept=0.96, chance=0.01):
        top1 = [{"source": str(i), "top": top, "kept": kept} for i, top in enumerate(tops)] + [{"source": "all"}]
        product = {"agreement": [{"same_top1_by_chance": chance}], "top1": top1}
        return judge(stored, "The top feature is stable", stability__summary_json=product).verdict

    assert stable("aaa") == "supported" and stable("aaa", chance=0.2) == "cannot tell"
    assert stable("aab") == "not supported" and stable("aab", kept=0.4) == "cannot tell"

    answers = pd.DataFrame({"benchmark": "mmlu", "subject": "s", "item": range(400), "score": [1.0, 0.0] * 200})
    for name in ("original", "igds@0.5", "igds@0.5-s1"):
        stored.store.write(f"math/arms/{name}/capabilities.parquet", answers)
    worse = answers.assign(score=0.0)
    assert judge(stored, "Nothing is forgotten", summary_json=[arm("igds", 2)]).verdict == "supported"
    stored.store.write("math/arms/igds@0.5-s1/capabilities.parquet", worse)
    stored.store.write("math/arms/igds@0.5/capabilities.parquet", worse)
    assert judge(stored, "Nothing is forgotten").verdict == "not supported"
    assert judge(stored, "Nothing is forgotten", summary_json=[arm("igds", 1)]).verdict == "cannot tell"


def test_the_table_has_a_row_a_claim_and_task(tmp_path):
    preset = load_preset("smoke", tasks=["math", "translation"])
    machine = {"gpus": 1, "threads": 2, "processor": "x"}
    metrics = dict.fromkeys(preset.tasks, asdict(POINTS))
    facts = {"preset": preset.model_dump(), "machine": machine, "notebooks": {}, "metrics": metrics}
    store = Store(tmp_path / "run" / preset.model)
    store.write("manifest.json", facts)
    store.write("math/summary.json", [arm("random", 5), arm("igds", vs_random=ABOVE)])
    table = claims(tmp_path / "run").set_index("Claim")
    assert set(table.index) == set(CLAIMS) and table["Supported where"].str.len().min() > 20
    assert table.loc["IGDS beats Random", ["Task", "Verdict"]].tolist() == ["Math", "supported"]
    assert table.loc["IGDS beats Loss", ["Task", "Verdict"]].tolist() == ["all", "not run"]
    other = Store(tmp_path / "run" / "other")  # another model's results of the same preset
    other.write("manifest.json", facts)
    other.write("math/summary.json", [arm("random", 5), arm("igds", vs_random=BELOW)])
    both = claims(tmp_path / "run").set_index("Claim").loc["IGDS beats Random"]
    assert dict(zip(both["Task"], both["Verdict"], strict=True)) == {
        "Math (other)": "not supported", f"Math ({preset.model})": "supported",
    }  # fmt: skip
    assert "Math (other): not supported" in report.overview([tmp_path / "run"])


@pytest.mark.parametrize("name", sorted(p.parents[1].name for p in PROJECT.glob("results/reference/*/*/manifest.json")))
def test_the_readme_has_the_claims_of_every_reference(name):
    page = (PROJECT / "results/README.md").read_text(encoding="utf8")
    assert report.at_a_glance(PROJECT / "results/reference" / name)["Outcome"] in page
    json.dumps(claims(PROJECT / "results/reference" / name).to_dict("records"))
