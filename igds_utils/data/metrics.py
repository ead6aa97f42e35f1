"""Metrics: accuracy by math-verify and pass@k, ROUGE-1/2/L, chrF, BLEU and COMET. One function a formula."""

import logging
import os
import threading
from collections.abc import Sequence
from functools import cache, partial
from itertools import zip_longest
from math import comb
from pickle import UnpicklingError
from types import SimpleNamespace
from unicodedata import normalize
from unittest.mock import patch

import regex

from igds_utils.config.refs import FolderRef, HubRef
from igds_utils.data import hub
from igds_utils.data.hub import fetched, snapshot

# Scripts that put no spaces between words: a letter with its marks counts as a word.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORD = regex.compile(rf"(?V1)[{UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{UNSPACED}]]+|\p{{So}}")
BOX = r"\\(?:boxed|fbox)\s*"
BOXED = regex.compile(rf"{BOX}(\{{(?:[^{{}}]++|(?1))*+\}})")  # with its braces, whatever they hold
NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
LAST_NUMBER = regex.compile(rf"(?<!\d)-?{NUMBER}(?:/{NUMBER})?")
BASED = regex.compile(r"(?<!\w)(\d[\dA-Z]*)\s*_\s*\{?\s*(\d+)")  # 4343_7, 4343_{7}
PLAIN = str.maketrans("−－＋／．０１２３４５６７８９", "--+/.0123456789")  # U+2212 and full-width characters
COMMIT = regex.compile("[0-9a-f]{40}")
UNPICKLE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # torch's own: read what is more than tensors too


def words(text: str) -> list[str]:
    """Words and numbers of a text in lower case and NFC, without punctuation, signs and operators.

    Of ASCII text they are rouge_score's. Other scripts keep their letters and vowel signs; where a script puts no
    spaces between words, as Chinese and Thai do, each character is a word, and so is an emoji everywhere.
    """
    return WORD.findall(normalize("NFC", text).lower())


def boxed_answer(text: str) -> str | None:
    r"""What the last complete \boxed{...} or \fbox{...} that is not empty holds; None without one."""
    found = [box[1][1:-1].strip() for box in BOXED.finditer(text, overlapped=True)]
    return next(filter(None, reversed(found)), None)


def last_number(text: str) -> str | None:
    """The last number in digits, with its sign, decimals and denominator, without thousands separators, or None."""
    found = LAST_NUMBER.findall(text.translate(PLAIN))
    return found[-1].replace(",", "") if found else None


def math_correct(output: str, reference: str, timeout: int | None = 5) -> bool:
    r"""Whether the answer of an output is mathematically equal to the reference (math-verify).

    The answer is the last box that is not empty (`boxed_answer`), apart from a full stop at its end; without one, what
    math-verify finds in the text, from the last empty box on where there is one; else the last number. A base in the
    reference (4343_7) must stand in the answer too, which math-verify passes over. As there, (1,2) equals 1,2.

    `timeout`: seconds for parsing and for comparing, None for no limit. math-verify limits time by SIGALRM, which
    only the main thread can use; on other threads there is no limit.
    """
    from math_verify import parse, verify

    if threading.current_thread() is not threading.main_thread():
        timeout = None
    # an answer that cannot be parsed is a wrong answer, not a warning a line; so is the missing time limit
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    read = partial(parse, parsing_timeout=timeout)
    output, reference = output.translate(PLAIN), reference.translate(PLAIN)
    if (answer := boxed_answer(output)) is not None:
        given = read(f"\\boxed{{{answer.rstrip('. ')}}}")
    else:
        *before, answer = regex.split(BOX + r"\{", output)
        answer = answer if WORD.search(answer) else " ".join(before)
        # math-verify reads 1.5e3 as 1.5
        powers = regex.sub(r"(\d)[eE]([+-]?\d)", r"\1*10^\2", answer.lstrip("} "))
        given = read(powers) or read(last_number(answer) or "")
    if (base := BASED.fullmatch(reference.strip("$} "))) and base.groups() not in BASED.findall(answer)[-1:]:
        return False
    return bool(verify(read(f"\\boxed{{{reference}}}"), given, timeout_seconds=timeout))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of pass@k from n samples of which c are right: 1 - C(n-c, k) / C(n, k) (Chen et al., 2021).

    Raises `ValueError` unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def rouge(hypothesis: str, reference: str, stemming: bool = False) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F1 over `words`, each 0 to 1: of ASCII texts those of rouge_score.

    stemming: by Porter's algorithm, as rouge_score's use_stemmer does.
    """
    scores = _rouge_scorer(stemming).score(reference, hypothesis)
    return {kind: float(score.fmeasure) for kind, score in scores.items()}


@cache
def _rouge_scorer(stemming: bool):
    from nltk.stem.porter import PorterStemmer
    from rouge_score.rouge_scorer import RougeScorer

    stem = PorterStemmer().stem

    def tokenize(text: str) -> list[str]:
        return [stem(word) if stemming and len(word) > 3 else word for word in words(text)]

    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=SimpleNamespace(tokenize=tokenize))


def chrf(hypothesis: str, reference: str) -> float:
    """Sentence chrF2, 0 to 100: F-score of character n-grams up to 6, recall weighted twice (sacrebleu)."""
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(hypothesis, [reference]).score)


def bleu(hypothesis: str, reference: str, chinese: bool = False) -> float:
    """Sentence BLEU, 0 to 100, with exponential smoothing (sacrebleu); Chinese is split into characters."""
    from sacrebleu import sentence_bleu

    return float(sentence_bleu(hypothesis, [reference], tokenize="zh" if chinese else "13a").score)


def corpus_chrf_and_bleu(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], chinese: bool = False
) -> dict[str, float]:
    """chrF2 and BLEU of all hypotheses as one corpus, 0 to 100 (sacrebleu); each has one reference or more."""
    from sacrebleu import corpus_bleu, corpus_chrf

    streams = list(zip_longest(*references))
    found = corpus_bleu(hypotheses, streams, tokenize="zh" if chinese else "13a").score
    return {"chrf": float(corpus_chrf(hypotheses, streams).score), "bleu": float(found)}


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
    """The COMET model, loaded once a process; its encoder's tokenizer comes from the hub too.

    Tensors and plain values are read of any checkpoint; objects of a training only of one that cannot change.
    """
    from comet import load_from_checkpoint

    for name in ("lightning", "pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if isinstance(checkpoint, FolderRef):
        folder, name, pinned = hub.local_folder(checkpoint), checkpoint.folder, False
    else:
        folder, name = snapshot(checkpoint, ["hparams.yaml", "checkpoints/model.ckpt"]), checkpoint.hub
        pinned = bool(COMMIT.fullmatch(checkpoint.revision or ""))
    for needed in ("checkpoints/model.ckpt", "hparams.yaml"):
        if not (folder / needed).is_file():
            raise hub.SourceError(f"the COMET checkpoint {name} has no {needed}: correct metric.checkpoint")
    file = str(folder / "checkpoints" / "model.ckpt")
    try:
        with patch.dict(os.environ, {UNPICKLE: "1"} if pinned else {}):
            return fetched(name, lambda: load_from_checkpoint(file)).eval()
    except UnpicklingError as error:
        raise hub.SourceError(
            f"the COMET checkpoint {name} holds more than tensors, and reading that may run code: pin its commit "
            f"on the hub (metric.checkpoint.revision), or, if you trust it, set {UNPICKLE}=1"
        ) from error
