"""Prompts (Table 9), their tokens, and the critical position p.

Two renderings of a prompt: `bare` is the template itself; `chat` gives the template's body to the model as a user's
turn and opens the assistant's turn with the cue line (`Solution:`), so that the prompt ends in the same colon.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

import numpy as np

from igds_utils.config.settings import TaskConfig
from igds_utils.engine.features import say_once
from igds_utils.tasks.base import Task
from igds_utils.tasks.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rendering = Literal["bare", "chat"]
OFFSETS = 1024  # texts whose character offsets exist at once
# Rendered chats, and tokenized texts: several measurements of a pool ask for them, but a pool may have a million.
KEPT = 50_000
# tokenizer -> text -> its tokens without BOS
_READ: WeakKeyDictionary[PreTrainedTokenizerBase, dict[str, array]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Sample:
    """A sample on which effects are measured."""

    id: str
    prompt: list[int]  # token ids that end at the critical token
    tokens: list[int]  # the same, then the target and end-of-sequence
    example: Example


def identification_prompt(
    task: Task,
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    rendering: Rendering,
    max_tokens: int | None = None,
) -> str:
    """The prompt on which features are found and samples scored (Table 9, identification), ending in its colon.

    max_tokens: an example for which it is longer is cut at the end of its text (`fitted`).
    """
    return fitted(
        example,
        tokenizer,
        lambda cut: _render(task.identification_template.format(**cut.fields), tokenizer, rendering),
        max_tokens,
    )


def evaluation_prompt(
    task: Task,
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    rendering: Rendering,
    shots: int = 0,
    max_tokens: int | None = None,
) -> str:
    """The prompt of the test (Table 9, evaluation); without shots it is the identification prompt.

    Raises `ValueError` if the task has fewer worked examples than `shots`.
    """
    if shots == 0:
        return identification_prompt(task, example, tokenizer, rendering, max_tokens)
    if shots > len(task.shots):
        raise ValueError(
            f"task {task.name} has {len(task.shots)} worked examples, not {shots}: lower `shots`"
        )
    worked = "".join(task.shot_template.format(**shot) for shot in task.shots[:shots])
    return fitted(
        example,
        tokenizer,
        lambda cut: _render(task.few_shot_template.format(**cut.fields, shots=worked), tokenizer, rendering),
        max_tokens,
    )


def fitted(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    render: Callable[[Example], str],
    max_tokens: int | None,
) -> str:
    """`render(example)`, the longest field of the example cut at its end until the prompt has at most `max_tokens`.

    What stands around that text, the instruction and the cue with its critical colon, stays whole. Raises `ValueError`
    where it alone is too long. Control tokens in the fields stay text (`as_text`).
    """
    fields = {field: as_text(text, tokenizer, example.id) for field, text in example.fields.items()}
    example = replace(example, fields=fields) if fields != example.fields else example
    text = render(example)
    name = max(example.fields, key=lambda field: len(example.fields[field]))
    while max_tokens is not None and (excess := len(encode(tokenizer, text)) - max_tokens) > 0:
        body = example.fields[name]
        offsets = tokenizer(body, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if excess > len(offsets):
            raise ValueError(
                f"{example.id}: the prompt without its {name} is longer than {max_tokens} tokens: raise "
                "max_prompt_tokens, or ask for fewer shots"
            )
        shorter = body[: offsets[len(offsets) - excess][0]].rstrip()
        example = replace(example, fields={**example.fields, name: shorter})
        text = render(example)
    return text


def sft_pair(
    task: Task,
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    rendering: Literal["records", "evaluation"],
    task_config: TaskConfig,
) -> tuple[str, str]:
    """Prompt and completion of one training sample, without EOS.

    `records`: instruction, newline, input, newline, then the output (Table 9, SFT; an empty input takes no line).
    `evaluation`: the test's prompt as `task_config` renders it, then a space and the target.
    """
    if rendering == "evaluation":
        prompt = evaluation_prompt(
            task, example, tokenizer, task_config.rendering, task_config.shots, task_config.max_prompt_tokens
        )
        return prompt, as_text(f" {example.target}", tokenizer, example.id)
    parts = (task.records_instruction, task.records_input)

    def render(cut: Example) -> str:
        return "".join(f"{text}\n" for part in parts if (text := part.format(**cut.fields)))

    prompt = fitted(example, tokenizer, render, task_config.max_prompt_tokens)
    completion = task.records_output.format(**example.fields, target=example.target)
    return prompt, as_text(completion, tokenizer, example.id)


def cue_prompt(task: Task, text: str, tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> str:
    """The cue line of the task's identification prompt (`Solution:`) after a text that does not pose the task."""
    cue = task.identification_template.rsplit("\n", 1)[1]
    return _render(f"{text}\n{cue}", tokenizer, rendering)


def bare_header(task: Task, tokenizer: PreTrainedTokenizerBase, task_config: TaskConfig) -> str:
    """What opens the answer of a training sample where nothing is asked: IFD's loss without an instruction.

    `evaluation`: the cue line, in a chat after an empty user's turn. `records`: the newline before the output.
    """
    if task_config.sft.rendering == "records":
        return "\n"
    template = task.few_shot_template if task_config.shots else task.identification_template
    cue = template.rsplit("\n", 1)[1]
    return cue if task_config.rendering == "bare" else _render(f"\n{cue}", tokenizer, "chat")


def as_text(text: str, tokenizer: PreTrainedTokenizerBase, sample: str = "") -> str:
    """`text` in which no control token of the tokenizer is one: of each, a space follows its first character.

    A turn that a sample's text seems to end (`<|im_end|>`) stays text of that turn, as `< |im_end|>`; a text without
    control tokens comes back as it is. sample: its id, for the remark that is printed once.
    """
    for token in _control_tokens(tokenizer):
        if token in text:
            text = text.replace(token, broken := f"{token[0]} {token[1:]}")
            if sample:
                say_once(
                    f"{sample} holds {token}, a control token of the tokenizer: it is read as text, as {broken}, here "
                    "and in every sample that holds it"
                )
    return text


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    known = tokenizer.added_tokens_decoder.values() if tokenizer is not None else ()
    return [token.content for token in known if token.special and len(token.content) > 1]


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a rendered text, with exactly one BOS if the tokenizer has one.

    Chat templates often write BOS themselves, and some tokenizers prepend it to whatever they get; adding it here,
    only where it is missing, makes every rendering start alike.
    """
    return encode_all(tokenizer, [text])[0]


def encode_all(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of many texts, which a fast tokenizer reads on all processors; tokens of the last KEPT are kept."""
    known = _READ.setdefault(tokenizer, {})
    if missing := [text for text in dict.fromkeys(texts) if text not in known]:
        found = tokenizer(missing, add_special_tokens=False)["input_ids"]
        known.update(zip(missing, (array("i", ids) for ids in found), strict=True))
    read = [known[text].tolist() for text in texts]
    if len(known) > KEPT:
        known.clear()
    return [[tokenizer.bos_token_id] * _bos_missing(tokenizer, ids) + ids for ids in read]


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, eos: bool = True
) -> tuple[list[int], int]:
    """`encode_pairs` of one pair."""
    return encode_pairs(tokenizer, [prompt], [completion], eos)[0]


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str], eos: bool = True
) -> list[tuple[list[int], int]]:
    """Token ids of each prompt + completion (+ EOS), tokenized together, and how many of them are the prompt's.

    Control tokens in the completion stay text (`as_text`); the prompt's are those of its rendering. Raises `ValueError`
    if the prompt's own tokens are not a prefix of them: activations read on the prompt alone would then not be those of
    the training sample.
    """
    if eos and tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no EOS token, so a target cannot be ended: set tokenizer.eos_token"
        )
    texts = [(prompt, as_text(own, tokenizer)) for prompt, own in zip(prompts, completions, strict=True)]
    whole, alone = encode_all(tokenizer, [p + c for p, c in texts]), encode_all(tokenizer, prompts)
    for (prompt, completion), ids, own in zip(texts, whole, alone, strict=True):
        if ids[: len(own)] != own:
            raise ValueError(
                f"the tokenizer merges the end of the prompt with the target: {prompt[-30:]!r} + "
                f"{completion[:30]!r}; start the target with a space, or end the prompt in a cue line"
            )
    end = [tokenizer.eos_token_id] * eos
    return [(ids + end, len(own)) for ids, own in zip(whole, alone, strict=True)]


def critical_position(tokenizer: PreTrainedTokenizerBase, text: str, prompt: str) -> int:
    """`critical_positions` of one text."""
    return critical_positions(tokenizer, [text], [prompt])[0]


def critical_positions(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], prompts: Sequence[str]
) -> list[int]:
    """Index p of each text, in `encode(tokenizer, text)`, of the token that holds the colon which ends its prompt.

    A text is the prompt alone or the prompt and what follows. Found by character offset, so neither the tokens
    after the colon nor a colon merged with its neighbours can move it. Raises `ValueError` if the prompt does not
    end in a colon, does not begin the text, or the tokenizer knows no offsets.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no character offsets: load it with use_fast=True")
    for text, prompt in zip(texts, prompts, strict=True):
        if not prompt.endswith(":"):
            raise ValueError(
                f"the prompt must end in the colon ':' (U+003A), the critical position; it ends in {prompt[-20:]!r}"
            )
        if not text.startswith(prompt):
            raise ValueError(f"the text does not begin with the prompt {prompt[:40]!r}...")
    read = encode_all(tokenizer, texts)
    # a prompt alone ends in the token of its colon, which costs no offsets
    at_end = [
        text == prompt and tokenizer.convert_ids_to_tokens(ids[-1]).endswith(":")
        for text, prompt, ids in zip(texts, prompts, read, strict=True)
    ]
    found = [len(ids) - 1 for ids in read]
    others = [i for i, known in enumerate(at_end) if not known]
    for start in range(0, len(others), OFFSETS):
        some = others[start : start + OFFSETS]
        own = [texts[i] for i in some]
        offsets = tokenizer(own, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        for i, spans in zip(some, offsets, strict=True):
            length = len(prompts[i])
            inside = [token for token, (first, end) in enumerate(spans) if first < length <= end]
            if not inside:
                raise ValueError(
                    f"no token holds the colon that ends {prompts[i][-20:]!r}: the tokenizer drops it"
                )
            found[i] = inside[0] + len(read[i]) - len(spans)  # BOS
    return found


def _bos_missing(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> bool:
    return tokenizer.bos_token_id is not None and ids[:1] != [tokenizer.bos_token_id]


def _render(prompt: str, tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> str:
    return _chat(prompt, tokenizer) if rendering == "chat" else prompt


@lru_cache(maxsize=KEPT)
def _chat(prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template: set `rendering: bare`, or use a chat model")
    body, cue = prompt.rsplit("\n", 1)
    turn = [{"role": "user", "content": body}]
    # Only Qwen3's template reads enable_thinking; templates ignore what they do not name.
    opened = tokenizer.apply_chat_template(
        turn, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return opened + cue


def answer_room(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_new_tokens: int
) -> dict[str, float]:
    """Whether right answers fit into `max_new_tokens`: tokens of each example's longest reference or target.

    longer: share of the examples whose tokens are more. median, most (of 90 % of the examples), longest: tokens.
    """
    texts = [f" {max((example.target, *example.references), key=len)}" for example in examples]
    lengths = np.array([len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]])
    median, most, longest = np.quantile(lengths, (0.5, 0.9, 1), method="higher").tolist()
    longer = float((lengths > max_new_tokens).mean())
    return {"limit": max_new_tokens, "longer": longer, "median": median, "most": most, "longest": longest}
