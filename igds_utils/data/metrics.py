"""Metrics: math-verify, pass@k, ROUGE-1/2/L, chrF, BLEU and COMET. One function a formula."""

import logging
import os
from collections.abc import Sequence
from functools import cache
from itertools import zip_longest
from math import comb
from types import SimpleNamespace
from unicodedata import normalize
from unittest.mock import patch

import regex

from igds_utils.config.refs import FolderRef, HubRef
from igds_utils.data.hub import fetched, local_folder, snapshot

# Scripts that put no spaces between words: a letter with its marks counts as a word.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORD = regex.compile(
    rf"(?V1)[{UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{UNSPACED}]]+|\p{{So}}"
)
# with its braces, whatever they hold
BOXED = regex.compile(r"\\(?:boxed|fbox)\s*(\{(?:[^{}]++|(?1))*+\})")
NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
LAST_NUMBER = regex.compile(rf"(?<!\d)-?{NUMBER}(?:/{NUMBER})?")
BASED = regex.compile(r"(?<!\w)(\d[\dA-Z]*)\s*_\s*\{?\s*(\d+)")  # 4343_7, 4343_{7}
PLAIN = str.maketrans("−－＋／．０１２３４５６７８９", "--+/.0123456789")  # U+2212 and full-width characters
ENCODER = "xlm-roberta-large"  # of COMET, fetched by it
COMET_FILES = ["hparams.yaml", "checkpoints/model.ckpt"]


def words(text: str) -> list[str]:
    """Words and numbers of a text in lower case and NFC, without punctuation, signs and operators.

    Of ASCII text they are rouge_score's. Other scripts keep their letters and vowel signs; where
    one puts no spaces between words (Chinese, Thai), each character is a word, as is an emoji.
    """
    return WORD.findall(normalize("NFC", text).lower())


def boxed_answer(text: str) -> str | None:
    r"""What the last complete, not empty \boxed{...} or \fbox{...} holds; None without one."""
    found = [box[1][1:-1].strip() for box in BOXED.finditer(text, overlapped=True)]
    return next(filter(None, reversed(found)), None)


def last_number(text: str) -> str | None:
    """The last number in digits, with sign and denominator, without separators, or None."""
    found = LAST_NUMBER.findall(text.translate(PLAIN))
    return found[-1].replace(",", "") if found else None


def math_correct(output: str, reference: str) -> bool:
    r"""Whether the answer of an output is mathematically equal to the reference (math-verify).

    The answer is the last box that is not empty, apart from a full stop at its end; without one,
    what math-verify finds in the text, else the last number. A base in the reference (4343_7) must
    stand in the answer too, which math-verify passes over.
    """
    from math_verify import parse, verify

    # an answer that cannot be parsed is a wrong answer, not a warning a line
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    output, reference = output.translate(PLAIN), reference.translate(PLAIN)
    if box := boxed_answer(output):
        given = parse(f"\\boxed{{{box.rstrip('. ')}}}")
    else:
        given = parse(output) or parse(last_number(output) or "")
    base = BASED.fullmatch(reference.strip("$} "))
    if base and base.groups() not in BASED.findall(box or output)[-1:]:
        return False
    return bool(verify(parse(f"\\boxed{{{reference}}}"), given))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased pass@k of n samples, c of them right: 1 - C(n-c, k) / C(n, k) (Chen et al., 2021)."""
    return 1.0 - comb(n - c, k) / comb(n, k)


def rouge(hypothesis: str, reference: str) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F1 over `words`, each 0 to 1; of ASCII texts rouge_score's."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, tokenizer=SimpleNamespace(tokenize=words))
    return {kind: float(score.fmeasure) for kind, score in scorer.score(reference, hypothesis).items()}


def chrf(hypothesis: str, reference: str) -> float:
    """Sentence chrF2, 0 to 100: F2-score of character n-grams up to 6 (sacrebleu)."""
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(hypothesis, [reference]).score)


def bleu(hypothesis: str, reference: str, chinese: bool = False) -> float:
    """Sentence BLEU, 0 to 100, smoothed (sacrebleu); Chinese is split into characters."""
    from sacrebleu import sentence_bleu

    return float(sentence_bleu(hypothesis, [reference], tokenize="zh" if chinese else "13a").score)


def corpus_chrf_and_bleu(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], chinese: bool = False
) -> dict[str, float]:
    """chrF2 and BLEU of all hypotheses as one corpus, 0 to 100 (sacrebleu)."""
    from sacrebleu import corpus_bleu, corpus_chrf

    streams = list(zip_longest(*references))
    found = corpus_bleu(hypotheses, streams, tokenize="zh" if chinese else "13a").score
    return {"chrf": float(corpus_chrf(hypotheses, streams).score), "bleu": float(found)}


def comet(
    triples: Sequence[tuple[str, str, str]], checkpoint: HubRef | FolderRef, batch: int = 64
) -> list[float]:
    """COMET x 100 of (source, hypothesis, reference) triples, on this process's GPU if it has one.

    checkpoint: a hub repository or a local folder with hparams.yaml and checkpoints/model.ckpt, a
    pickle. Beside tensors it holds objects of its training, which are read only where the hub's
    commit is named, or TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 is set; else torch refuses.
    """
    import torch

    samples = [dict(zip(("src", "mt", "ref"), triple, strict=True)) for triple in triples]
    options = {"batch_size": batch, "num_workers": 0, "progress_bar": False, "gpus": 0}
    if torch.cuda.is_available():  # of several processes each has its own
        options |= {"gpus": 1, "devices": [torch.cuda.current_device()]}
    found = _comet_model(checkpoint).predict(samples, **options)
    return [100 * score for score in found["scores"]]


@cache
def _comet_model(checkpoint: HubRef | FolderRef):
    """The COMET model, loaded once a process; its encoder's tokenizer comes from the hub too."""
    from comet import load_from_checkpoint

    for name in ("lightning", "pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    own = isinstance(checkpoint, FolderRef)
    folder = local_folder(checkpoint) if own else snapshot(checkpoint, COMET_FILES)
    pinned = not own and regex.fullmatch(r"[0-9a-f]{40}", checkpoint.revision)
    with patch.dict(os.environ, {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"} if pinned else {}):
        return fetched(ENCODER, lambda: load_from_checkpoint(str(folder / COMET_FILES[1]))).eval()
