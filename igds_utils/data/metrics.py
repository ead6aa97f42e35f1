"""Metrics: accuracy by math-verify and pass@k, ROUGE-1/2/L, chrF, BLEU and COMET. One function a formula."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Sequence
from functools import cache
from math import comb
from pathlib import Path
from pickle import UnpicklingError

from igds_utils.config.refs import FolderRef, HubRef
from igds_utils.data import hub
from igds_utils.data.huggingface import fetched, snapshot

NUMBER = re.compile(r"(?<!\d)-?\d[\d,]*(?:\.\d+)?")
BOX = "\\boxed{"
COMMIT = re.compile("[0-9a-f]{40}")
UNPICKLE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # torch's own: read what is more than tensors too


def boxed_answer(text: str) -> str | None:
    r"""What the last complete \boxed{...} of a text holds, braces inside it included; None without one."""
    start = text.rfind(BOX)
    while start >= 0:
        depth = 1
        for end in range(start + len(BOX), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start + len(BOX) : end].strip()
        start = text.rfind(BOX, 0, start)  # the last box was cut off: the one before it
    return None


def last_number(text: str) -> str | None:
    """The last number written in digits, without thousands separators; None without one."""
    found = NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


def math_answer(output: str, number: bool = True) -> tuple[str | None, bool]:
    r"""The answer of an output, and whether it was boxed: the last \boxed{}, else the last number (if `number`)."""
    boxed = boxed_answer(output)
    return (boxed, True) if boxed is not None else (last_number(output) if number else None, False)


def math_correct(answer: str | None, reference: str, timeout: int | None = 5) -> bool:
    """Whether an answer, apart from a full stop at its end, is mathematically equal to the reference (math-verify).

    `timeout`: seconds for parsing and for comparing, None for no limit. math-verify limits time by SIGALRM, which
    only the main thread can use; on other threads there is no limit.
    """
    from math_verify import parse, verify

    if not answer:
        return False
    if threading.current_thread() is not threading.main_thread():
        timeout = None
    _quiet_math_verify()
    gold, given = (
        parse(f"\\boxed{{{text}}}", parsing_timeout=timeout) for text in (reference, answer.rstrip(". "))
    )
    return bool(verify(gold, given, timeout_seconds=timeout))


@cache
def _quiet_math_verify() -> None:
    """An answer that cannot be parsed is a wrong answer, not a warning a line; so is the missing time limit."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of pass@k from n samples of which c are right: 1 - C(n-c, k) / C(n, k) (Chen et al., 2021).

    Raises `ValueError` unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def rouge(hypothesis: str, reference: str, stemming: bool = False) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F1, each 0 to 1 (rouge_score; without Porter stemming by default).

    rouge_score keeps only Latin letters and digits: not for Chinese.
    """
    kinds = ("rouge1", "rouge2", "rougeL")
    scores = _rouge_scorer(kinds, stemming).score(reference, hypothesis)
    return {kind: float(scores[kind].fmeasure) for kind in kinds}


@cache
def _rouge_scorer(kinds: tuple[str, ...], stemming: bool):
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(kinds), use_stemmer=stemming)


def chrf(hypothesis: str, reference: str) -> float:
    """Sentence chrF2, 0 to 100: F-score of character n-grams up to 6, recall weighted twice (sacrebleu)."""
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(hypothesis, [reference]).score)


def bleu(hypothesis: str, reference: str, chinese: bool = False) -> float:
    """Sentence BLEU, 0 to 100, with exponential smoothing (sacrebleu); Chinese is split into characters."""
    from sacrebleu import sentence_bleu

    return float(sentence_bleu(hypothesis, [reference], tokenize="zh" if chinese else "13a").score)


def comet(
    triples: Sequence[tuple[str, str, str]], checkpoint: HubRef | FolderRef, batch: int = 64
) -> list[float]:
    """COMET x 100 of (source, hypothesis, reference) triples, in batches, on this process's GPU if there is one.

    checkpoint: a hub repository or a local folder with hparams.yaml and checkpoints/model.ckpt, read by unbabel-comet.
    Raises `SourceError` where it cannot be loaded.
    """
    import torch

    if not triples:
        return []
    model = _comet_model(checkpoint)
    samples = [dict(zip(("src", "mt", "ref"), triple, strict=True)) for triple in triples]
    order = sorted(range(len(samples)), key=lambda i: len(samples[i]["src"]))
    scores = [0.0] * len(samples)
    # Not by its own `predict`: Lightning's trainer takes the machine's first GPU in every process, and for all that
    # follows. The current one is the process's own; the model leaves it to the models that generate.
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with torch.inference_mode():
            for start in range(0, len(order), batch):
                chosen = order[start : start + batch]
                inputs = model.prepare_for_inference([samples[i] for i in chosen])
                found = model.predict_step(model.transfer_batch_to_device(inputs, model.device, 0))
                for i, score in zip(chosen, found["scores"].tolist(), strict=True):
                    scores[i] = 100 * score
    finally:
        model.to("cpu")
    return scores


@cache
def _comet_model(checkpoint: HubRef | FolderRef):
    """The COMET model, loaded once a process."""
    for name in ("lightning", "pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if isinstance(checkpoint, FolderRef):
        folder, name, pinned = hub.local_folder(checkpoint), checkpoint.folder, False
    else:
        folder, name = snapshot(checkpoint, ["hparams.yaml", "checkpoints/model.ckpt"]), checkpoint.hub
        pinned = bool(COMMIT.fullmatch(checkpoint.revision or ""))
    file = folder / "checkpoints" / "model.ckpt"
    for needed in (file, folder / "hparams.yaml"):
        if not needed.is_file():
            raise hub.SourceError(
                f"the COMET checkpoint {name} has no {needed.relative_to(folder)}: correct metric.checkpoint"
            )
    # its encoder's tokenizer comes from the hub too
    return fetched(name, lambda: _load_comet(file, name, pinned)).eval()


def _load_comet(file: Path, name: str, pinned: bool):
    """Tensors and plain values are read of any checkpoint; objects of a training only of one that cannot change."""
    from comet import load_from_checkpoint

    try:
        return load_from_checkpoint(str(file))
    except UnpicklingError as error:
        if not pinned:
            raise hub.SourceError(
                f"the COMET checkpoint {name} holds more than tensors, and reading that may run code: pin its commit "
                f"on the hub (metric.checkpoint.revision), or, if you trust it, set {UNPICKLE}=1"
            ) from error
    os.environ[UNPICKLE] = "1"
    try:
        return load_from_checkpoint(str(file))
    finally:
        del os.environ[UNPICKLE]
