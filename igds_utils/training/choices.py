"""Log-likelihoods of answers for lm-eval, with the engine of this package.

lm-eval's own model computes logits at every token of a question: the head is the dearest layer of a small model with a
large vocabulary, and of a large one those logits fill the memory. Here they are made only where an answer is predicted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lm_eval.models.huggingface import HFLM

from igds_utils.engine import distributed
from igds_utils.engine.batching import pad, token_batches
from igds_utils.engine.lm import LM
from igds_utils.engine.losses import logits_at

Request = tuple[tuple[str, str], list[int], list[int]]  # texts, and tokens of context and continuation
# log-likelihood of the continuation, and whether it is what greedy decoding gives
Answer = tuple[float, bool]


class Reader(HFLM):
    """lm-eval's model, which tokenizes as lm-eval does; the processes of a launch share its batches."""

    def __init__(self, lm: LM, batch_tokens: int = 2048):
        super().__init__(pretrained=lm.model, tokenizer=lm.tokenizer)
        self._lm, self._batch_tokens = lm, batch_tokens

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        """Context and continuation longer than the model reads lose their first tokens, as in lm-eval."""
        # continuations that differ in their last token share a pass
        asked: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            asked.setdefault(tuple((context + continuation)[-self.max_length - 1 : -1]), []).append(number)
        sequences = list(asked)

        def answer(batch: list[int]) -> list[tuple[int, Answer]]:
            return self._answers(requests, {sequences[i]: asked[sequences[i]] for i in batch})

        batches = token_batches([len(ids) for ids in sequences], self._batch_tokens)
        found = dict(one for part in distributed.map_in_order(answer, batches) for one in part)
        return [found[number] for number in range(len(requests))]

    @torch.inference_mode()
    def _answers(
        self, requests: Sequence[Request], asked: dict[tuple[int, ...], list[int]]
    ) -> list[tuple[int, Answer]]:
        """Answers by number of the request. asked: which requests read each token sequence of one batch."""
        inputs = pad(list(asked), self._lm.tokenizer.pad_token_id, "right", self._lm.device)
        predicting = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        spans = [max(len(requests[number][2]) for number in numbers) for numbers in asked.values()]
        for row, (ids, span) in enumerate(zip(asked, spans, strict=True)):
            predicting[row, len(ids) - span : len(ids)] = True
        logits = logits_at(self._lm.model, predicting, **inputs)  # (predicting positions, vocabulary)
        made = []
        for numbers, of_row in zip(asked.values(), logits.split(spans), strict=True):
            own = of_row.float().log_softmax(-1)  # of one row: all in fp32 would be a second large matrix
            for number in numbers:
                tokens = torch.tensor(requests[number][2], device=own.device)
                here = own[-len(tokens) :]
                likelihood = float(here.gather(1, tokens[:, None]).sum())
                made.append((number, (likelihood, bool((here.argmax(-1) == tokens).all()))))
        return made
