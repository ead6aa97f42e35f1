"""The paper's datasets with a few made-up rows each, in the true files and columns."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pandas as pd

ROWS = 40
NAMES = ["Ann", "Ben", "Chloe", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivan", "Jane"]
THINGS = ["apples", "books", "coins", "eggs", "marbles", "pencils", "stamps"]
IN_CHINESE = "安 本 克洛伊 丹 伊娃 芬 格斯 花 伊万 简 苹果 书 硬币 鸡蛋 弹珠 铅笔 邮票".split()
ZH = dict(zip(NAMES + THINGS, IN_CHINESE, strict=True))


def _drawn(name: str) -> list[tuple[str, str, int, int]]:
    """Who, what, how many and how many more: all different, and none in two datasets."""
    draw, first = Random(name), sum(map(ord, name)) * 50
    return [(draw.choice(NAMES), draw.choice(THINGS), first + i, draw.randint(2, 50)) for i in range(ROWS)]


def _problems(name: str) -> pd.DataFrame:
    rows = [
        (
            f"{who} has {a} {what} and buys {b} more. How many {what} does {who} have now?",
            f"{who} has {a} + {b} = <<{a}+{b}={a + b}>>{a + b} {what}.",
            str(a + b),
        )
        for who, what, a, b in _drawn(name)
    ]
    return pd.DataFrame(rows, columns=["problem", "working", "answer"])


def _pairs(name: str) -> list[dict[str, str]]:
    return [
        {"en": f"{who} has {a} {what} and buys {b} more.", "zh": f"{ZH[who]}有{a}个{ZH[what]}，又买了{b}个。"}
        for who, what, a, b in _drawn(name)
    ]


def _write(table: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    match path.suffix:
        case ".parquet":
            table.to_parquet(path, index=False)
        case ".csv":
            table.to_csv(path, index=False)
        case ".jsonl":
            table.to_json(path, orient="records", lines=True, force_ascii=False)


def _card(folder: Path, **files: dict[str, str]) -> None:
    """README.md, whose header says which configuration and split a file belongs to."""
    configs = [
        {"config_name": config, "data_files": [{"split": s, "path": path} for s, path in splits.items()]}
        for config, splits in files.items()
    ]
    # JSON is YAML; the configuration names here are no Python identifiers
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")


def gsm8k(folder: Path) -> None:
    for split in ("train", "test"):
        made = _problems(f"gsm8k {split}")
        table = pd.DataFrame({"question": made.problem, "answer": made.working + "\n#### " + made.answer})
        _write(table, folder / f"main/{split}-00000-of-00001.parquet")
    _card(folder, main={split: f"main/{split}-*" for split in ("train", "test")})


def open_r1(folder: Path) -> None:
    made = _problems("open-r1")
    made["solution"] = made.pop("working") + " So \\boxed{" + made.answer + "}."
    made["generations"] = [["<think>Let me see.</think>"] * 2] * ROWS
    for part, rows in enumerate((made[: ROWS // 2], made[ROWS // 2 :])):
        _write(rows, folder / f"data/train-0000{part}-of-00002.parquet")
    _card(folder, default={"train": "data/train-*"})


def math_500(folder: Path) -> None:
    made = _problems("math-500").drop(columns="working").assign(level=1)
    made["solution"] = "$\\boxed{" + made.answer + "}$"
    _write(made, folder / "test.jsonl")
    _card(folder, default={"test": "test.jsonl"})


def dialogsum(folder: Path) -> None:
    """Its test split has three summaries a dialogue, and shares two with the training split."""
    made = {}
    for split in ("train", "validation", "test"):
        made[split] = [
            {
                "id": f"{split}_{i}",
                "dialogue": f"#Person1#: Hello, {who}. I bought {a} {what}.\n#Person2#: Only {b} would do.",
                "summary": f"#Person1# tells {who} about {a} {what}.",
                "topic": what,
            }
            for i, (who, what, a, b) in enumerate(_drawn(f"dialogsum {split}"))
        ]
    made["train"][:2] = [{**row, "id": f"train_{i}"} for i, row in enumerate(made["test"][:2])]
    made["test"] = [
        {**row, "id": f"{row['id']}_{k}", "summary": f"{row['summary']} {extra}"}
        for row in made["test"]
        for k, extra in enumerate(["They talk.", "It is a lot.", "#Person2# wants fewer."], start=1)
    ]
    for split, rows in made.items():
        _write(pd.DataFrame(rows), folder / f"{split}.csv")
    _card(folder, default={split: f"{split}.csv" for split in made})


def alma(folder: Path) -> None:
    for split in ("train", "validation"):
        table = pd.DataFrame({"translation": _pairs(f"alma {split}")})
        _write(table, folder / f"zh-en/{split}-00000-of-00001-0123456789abcdef.parquet")
    _card(folder, **{"zh-en": {split: f"zh-en/{split}-*" for split in ("train", "validation")}})


def wmt24pp(folder: Path) -> None:
    made = pd.DataFrame(_pairs("wmt24pp")).rename(columns={"en": "source", "zh": "target"})
    made = made.assign(lp="en-zh_CN", original_target=made.target, segment_id=range(ROWS))
    made["domain"] = ["canary", *(["news", "literary", "social", "speech"] * ROWS)[: ROWS - 1]]
    made["document_id"] = [f"doc{i // 4}" for i in range(ROWS)]
    made["is_bad_source"] = made.segment_id == 7
    _write(made, folder / "en-zh_CN.jsonl")
    _card(folder, **{"en-zh_CN": {"train": "en-zh_CN.jsonl"}})


def mmlu(folder: Path) -> None:
    """A configuration a subject, with the splits that five-shot questions need."""
    import lm_eval

    prompts = Path(lm_eval.__file__).parent / "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
    subjects = sorted(json.loads(prompts.read_text(encoding="utf8")))
    for subject in subjects:
        made = _problems(f"mmlu {subject}")[:6].drop(columns="working")
        made["choices"] = [[answer, "1", "2", "3"] for answer in made.pop("answer")]
        made = made.rename(columns={"problem": "question"}).assign(subject=subject, answer=0)
        _write(made[:5], folder / subject / "dev-00000-of-00001.parquet")
        _write(made[5:], folder / subject / "test-00000-of-00001.parquet")
    _card(folder, **{name: {split: f"{name}/{split}-*" for split in ("test", "dev")} for name in subjects})


def truthful_qa(folder: Path) -> None:
    rows = [
        {
            "question": row.problem,
            "mc1_targets": {"choices": [row.answer, "None."], "labels": [1, 0]},
            "mc2_targets": {"choices": [row.answer, "None.", "It depends."], "labels": [1, 0, 0]},
        }
        for row in _problems("truthful-qa")[:4].itertuples()
    ]
    _write(pd.DataFrame(rows), folder / "multiple_choice/validation-00000-of-00001.parquet")
    _card(folder, multiple_choice={"validation": "multiple_choice/validation-*"})


DATASETS = {
    "cais/mmlu": mmlu,
    "truthfulqa/truthful_qa": truthful_qa,
    "openai/gsm8k": gsm8k,
    "open-r1/OpenR1-Math-220k": open_r1,
    "HuggingFaceH4/MATH-500": math_500,
    "knkarthick/dialogsum": dialogsum,
    "haoranxu/ALMA-Human-Parallel": alma,
    "google/wmt24pp": wmt24pp,
}
