"""The forecast of the paper's preset: which GPUs work, what fits, and what to run where something does not."""

import pytest

from igds_utils.config.config import load_preset
from igds_utils.running import forecast, space
from igds_utils.running.plan import render

EIGHT, ONE, SMALL = "8 x H100 80 GB", "1 x H100 80 GB", "1 x RTX 4090 24 GB"


def ways(model="gemma-2-2b", **overrides):
    preset = load_preset("paper", model=model, tasks=["math"], overrides=overrides)
    return {way.name: way for way in forecast.ways(preset)}


def test_one_process_is_forecast_on_one_gpu_and_all_eight_with_the_change_that_uses_them():
    found = ways()
    assert list(found) == [ONE, EIGHT, SMALL]
    assert found[ONE].changes == {} and found[ONE].idle == 7
    assert found[EIGHT].changes == {"launch.processes": 8}
    alone, eight = (found[name].hours.to_numpy() for name in (ONE, EIGHT))
    assert eight[:-1] == pytest.approx(alone[:-1] / 8)  # all but starting processes
    assert eight[-1] > alone[-1]


def test_the_forecast_follows_the_processes_that_the_preset_asks_for():
    eight, four = ways(**{"launch.processes": 8}), ways(**{"launch.processes": 4})
    assert list(eight) == [EIGHT, SMALL] and eight[EIGHT].changes == {}
    assert four["4 x H100 80 GB"].idle == 4 and four["4 x H100 80 GB"].changes == {}
    assert eight[EIGHT].hours.sum() < four["4 x H100 80 GB"].hours.sum() < ways()[ONE].hours.sum()
    machines = ways(**{"launch.processes": 16, "launch.machines": 2})
    assert machines["16 x H100 80 GB"].changes == {}


def test_eight_billion_parameters_train_sharded_or_not_at_all():
    asked = ways("llama-3.1-8b")
    assert list(asked) == [EIGHT, SMALL] and asked[EIGHT].changes == {} and not asked[EIGHT].missed
    found = ways("llama-3.1-8b", **{"launch.processes": 1, "launch.training": None})
    assert found[ONE].missed == ["train", "evaluate"] and found[ONE].hours.isna().sum() == 4
    assert found[EIGHT].changes == {"launch.processes": 8, "launch.training": "fsdp"}
    assert found[EIGHT].hours.sum() == pytest.approx(asked[EIGHT].hours.sum())
    copied = ways("llama-3.1-8b", **{"launch.training": None})  # every process would hold the whole state
    assert copied[EIGHT].changes == {"launch.training": "fsdp"}


def test_a_24_gb_gpu_gets_what_makes_reading_fit_and_is_told_where_it_stops():
    found = ways()[SMALL]
    assert set(found.changes) == {"intervention.cache_gb"} and found.fits("identify") and found.fits("score")
    more = forecast._with(
        found.preset, {"intervention.cache_gb": found.changes["intervention.cache_gb"] + 0.5}
    )
    assert space.held(space.on_gpu(more)["identify"]) > found.room
    assert found.missed == ["train", "evaluate"]
    for model in ("llama-3.1-8b", "qwen3-8b"):  # of two models of 16 GB, one is held at a time
        large = ways(model)[SMALL]
        assert large.changes["launch.processes"] == 1 and large.preset.batch_tokens < 32768
        assert large.fits("score") and large.missed == ["train", "evaluate"]
        (line,) = (line for line in forecast.advice([large]) if line.startswith(SMALL))
        assert "stops, for 04_sft needs" in line and "fp32 weights, gradients and moments" in line


def test_a_gpu_that_holds_no_model_is_said_not_to_fit(monkeypatch):
    tiny = {SMALL: ways()[SMALL].machine.model_copy(update={"memory_gb": 4})}
    monkeypatch.setattr(forecast.costs, "machines", lambda: tiny)
    (line,) = forecast.advice(list(ways().values()))
    assert "does not fit: 02_causal_intervention needs" in line and "for weights" in line


def test_the_pass_of_a_large_batch_is_part_of_what_scoring_holds():
    held = [space.held(ways(batch_tokens=n)[ONE].memory["score"]) for n in (32768, 65536)]
    shape = ways()[ONE].preset.chosen.shape
    assert held[1] - held[0] == pytest.approx(32768 * 2 * shape.width * (shape.layers + 24))


def test_rows_that_are_read_hold_the_keys_of_their_prompts():
    """Short targets of long prompts: many rows in a pass, each with all keys of its prompt."""
    fewer = {"intervention.cache_gb": 30}
    preset = load_preset("paper", model="gemma-2-2b", tasks=["summarization"], overrides=fewer)
    parts = dict(space.on_gpu(preset)["identify"])
    rows = 32768 / 35
    assert parts["caches"] == pytest.approx(rows * (220 + 35) * 2 * 2 * 26 * 1024)
    assert "a pass of 32,768 tokens" in parts


def test_the_text_names_the_command_for_all_gpus_and_for_a_larger_pool():
    text = render(load_preset("paper", model="llama-3.1-8b", tasks=["math"]))
    assert f"{EIGHT}, as given: about" in text and "56 starts" in text
    assert "launch.machines=4 launch.processes=32" in text and "too much: " in text
    total = next(line for line in text.splitlines() if line.startswith("total")).split()
    hours = [way.hours.sum() for way in ways("llama-3.1-8b").values()]
    assert [float(cell.replace(",", "")) for cell in total[-2:]] == pytest.approx(hours, abs=0.05)
    assert "minutes" not in text


def test_igds_against_loss_follows_prompt_and_target_lengths():
    paper = load_preset("paper", model="llama-3.1-8b")
    ratio = {name: forecast.against_loss(paper.chosen.shape, task) for name, task in paper.tasks.items()}
    assert ratio["math"] < 0.25 < ratio["summarization"] < 0.7
