"""The paper's datasets with a few made-up rows each, in the true files and columns, and a tiny COMET checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pandas as pd

ROWS = 40
NAMES = ["Ann", "Ben", "Chloe", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivan", "Jane"]
THINGS = ["apples", "books", "coins", "eggs", "marbles", "pencils", "stamps"]
ZH = {"Ann": "安", "Ben": "本", "Chloe": "克洛伊", "Dan": "丹", "Eva": "伊娃", "Finn": "芬", "Gus": "格斯",
      "Hana": "花", "Ivan": "伊万", "Jane": "简", "apples": "苹果", "books": "书", "coins": "硬币", "eggs": "鸡蛋",
      "marbles": "弹珠", "pencils": "铅笔", "stamps": "邮票"}  # fmt: skip


def _drawn(name: str) -> list[tuple[str, str, int, int]]:
    """Who, what, how many and how many more: all different, and none in two datasets."""
    random, first = Random(name), sum(map(ord, name)) * 50
    return [
        (random.choice(NAMES), random.choice(THINGS), first + i, random.randint(2, 50)) for i in range(ROWS)
    ]


def _problems(name: str) -> list[dict[str, str]]:
    return [
        {
            "problem": f"{who} has {a} {what} and buys {b} more. How many {what} does {who} have now?",
            "sum": f"{who} has {a} + {b} = <<{a}+{b}={a + b}>>{a + b} {what}.",
            "answer": str(a + b),
        }
        for who, what, a, b in _drawn(name)
    ]


def _card(folder: Path, **files: dict[str, str]) -> None:
    """README.md with the header that tells datasets which configuration and split a file belongs to."""
    configs = [
        {"config_name": config, "data_files": [{"split": s, "path": path} for s, path in splits.items()]}
        for config, splits in files.items()
    ]
    # JSON is YAML; the configuration names here are no Python identifiers
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")


def _parquet(rows: list[dict], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_parquet(path)


def _jsonl(rows: list[dict], path: Path) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf8")


def gsm8k(folder: Path) -> None:
    for split in ("train", "test"):
        rows = [
            {"question": row["problem"], "answer": f"{row['sum']}\n#### {row['answer']}"}
            for row in _problems(f"gsm8k {split}")
        ]
        _parquet(rows, folder / f"main/{split}-00000-of-00001.parquet")
    _card(folder, main={split: f"main/{split}-*" for split in ("train", "test")})


def open_r1(folder: Path) -> None:
    rows = [
        {
            "problem": row["problem"],
            "solution": f"{row['sum']} So \\boxed{{{row['answer']}}}.",
            "answer": row["answer"],
            "generations": ["<think>Let me see.</think>"] * 2,
        }
        for row in _problems("open-r1")
    ]
    half = ROWS // 2
    _parquet(rows[:half], folder / "data/train-00000-of-00002.parquet")
    _parquet(rows[half:], folder / "data/train-00001-of-00002.parquet")
    _card(folder, default={"train": "data/train-*"})


def math_500(folder: Path) -> None:
    rows = [
        {
            "problem": row["problem"],
            "solution": f"$\\boxed{{{row['answer']}}}$",
            "answer": row["answer"],
            "level": 1,
        }
        for row in _problems("math-500")
    ]
    _jsonl(rows, folder / "test.jsonl")
    _card(folder, default={"test": "test.jsonl"})


def dialogsum(folder: Path) -> None:
    """Its test split has three summaries a dialogue, and a few of its dialogues stand in the training split too."""
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
        pd.DataFrame(rows).to_csv(folder / f"{split}.csv", index=False)
    _card(folder, default={split: f"{split}.csv" for split in made})


def _pairs(name: str) -> list[dict[str, str]]:
    return [
        {"en": f"{who} has {a} {what} and buys {b} more.", "zh": f"{ZH[who]}有{a}个{ZH[what]}，又买了{b}个。"}
        for who, what, a, b in _drawn(name)
    ]


def alma(folder: Path) -> None:
    for split in ("train", "validation"):
        rows = [{"translation": pair} for pair in _pairs(f"alma {split}")]
        _parquet(rows, folder / f"zh-en/{split}-00000-of-00001-0123456789abcdef.parquet")
    _card(folder, **{"zh-en": {split: f"zh-en/{split}-*" for split in ("train", "validation")}})


def wmt24pp(folder: Path) -> None:
    domains = ["canary", "news", "literary", "social", "speech"]
    rows = [
        {
            "lp": "en-zh_CN",
            "domain": domains[0] if i == 0 else domains[1 + i % 4],
            "document_id": f"doc{i // 4}",
            "segment_id": i,
            "is_bad_source": i == 7,
            "source": pair["en"],
            "target": pair["zh"],
            "original_target": pair["zh"],
        }
        for i, pair in enumerate(_pairs("wmt24pp"))
    ]
    _jsonl(rows, folder / "en-zh_CN.jsonl")
    _card(folder, **{"en-zh_CN": {"train": "en-zh_CN.jsonl"}})


def mmlu(folder: Path) -> None:
    """A configuration a subject, with the splits that five-shot questions need."""
    import lm_eval

    prompts = Path(lm_eval.__file__).parent / "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
    subjects = sorted(json.loads(prompts.read_text(encoding="utf8")))
    for subject in subjects:
        rows = [
            {
                "question": row["problem"],
                "subject": subject,
                "choices": [row["answer"], "1", "2", "3"],
                "answer": 0,
            }
            for row in _problems(f"mmlu {subject}")[:6]
        ]
        _parquet(rows[:5], folder / subject / "dev-00000-of-00001.parquet")
        _parquet(rows[5:], folder / subject / "test-00000-of-00001.parquet")
    _card(folder, **{name: {split: f"{name}/{split}-*" for split in ("test", "dev")} for name in subjects})


def truthful_qa(folder: Path) -> None:
    rows = [
        {
            "question": row["problem"],
            "mc1_targets": {"choices": [row["answer"], "None."], "labels": [1, 0]},
            "mc2_targets": {"choices": [row["answer"], "None.", "It depends."], "labels": [1, 0, 0]},
        }
        for row in _problems("truthful-qa")[:4]
    ]
    _parquet(rows, folder / "multiple_choice/validation-00000-of-00001.parquet")
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
