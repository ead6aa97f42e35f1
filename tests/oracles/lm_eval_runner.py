"""Scores of questions beside lm-eval's own runner, which loads the model from disk by itself."""

from importlib.metadata import version
from tempfile import TemporaryDirectory

import pandas as pd
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from parity import quiet, record, save_tiny

from igds_utils import tiny
from igds_utils.engine.lm import LM
from igds_utils.training import capabilities

REPOSITORY = "EleutherAI/lm-evaluation-harness"


def compare() -> tuple[int, int]:
    """Number of questions, and of those whose scores are the same."""
    with TemporaryDirectory() as work, quiet():
        lm = LM(tiny.model("llama"), save_tiny(work), "tiny")
        ours = capabilities.score(lm, ["mmlu_dev"], {})
        tasks = [*capabilities._tasks("mmlu_dev").values()]
        model = {"pretrained": work, "dtype": "float32"}
        manager = TaskManager(include_defaults=False)
        own = {"task_manager": manager, "bootstrap_iters": 0, "device": str(lm.device)}
        found = simple_evaluate("hf", model, tasks, **own)
    rows = [one for name in found["samples"] for one in found["samples"][name]]
    theirs = pd.DataFrame(
        [(one["doc"]["subject"], one["doc_id"], one["acc"]) for one in rows],
        columns=["subject", "item", "acc"],
    )
    both = ours.merge(theirs, on=["subject", "item"], validate="1:1")
    return len(ours), int((both["score"] == both["acc"]).sum())


if __name__ == "__main__":
    package = f"package {version('lm-eval')}"
    record("simple_evaluate", REPOSITORY, package, "scores of MMLU's dev questions", *compare())
