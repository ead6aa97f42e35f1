"""Prompts (Table 9), their tokens, and the critical position p.

Two renderings of a prompt: `bare` is the template itself; `chat` gives the template's body to the
model as a user's turn and opens the assistant's turn with the cue line (`Solution:`), so that the
prompt ends in the same colon.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

from igds_utils.config.refs import ConfigError
from igds_utils.config.settings import TaskConfig
from igds_utils.tasks.base import Task
from igds_utils.tasks.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

Rendering = Literal["bare", "chat"]
# Rendered and tokenized texts: several measurements of a pool ask for them, but a pool may have a million.
KEPT = 50_000
# tokenizer -> text -> its tokens without BOS
_READ: WeakKeyDictionary[Tokenizer, dict[str, array]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Sample:
    """A sample on which effects are measured."""

    id: str
    prompt: list[int]  # token ids that end at the critical token
    tokens: list[int]  # the same, then the target and end-of-sequence
    example: Example


def identification_prompt(
    task: Task, example: Example, tokenizer: Tokenizer, rendering: Rendering, max_tokens: int | None = None
) -> str:
    """The prompt on which features are found and samples scored (Table 9), cut as by `fitted`."""
    return evaluation_prompt(task, example, tokenizer, rendering, 0, max_tokens)


def evaluation_prompt(
    task: Task, example: Example, tokenizer: Tokenizer, rendering: Rendering, shots: int = 0,
    max_tokens: int | None = None,
) -> str:  # fmt: skip
    """The prompt of the test (Table 9, evaluation); without shots it is the identification prompt."""
    worked = "".join(task.shot_template.format(**shot) for shot in task.shots[:shots])
    template = task.few_shot_template if shots else task.identification_template

    def render(fields: dict[str, str]) -> str:
        return _render(template.format(**{"shots": worked, **fields}), tokenizer, rendering)

    return fitted(example, tokenizer, render, max_tokens)


def sft_pair(
    task: Task, example: Example, tokenizer: Tokenizer, rendering: str, config: TaskConfig
) -> tuple[str, str]:
    """Prompt and completion of one training sample, without EOS.

    `records`: instruction, newline, input, newline, then the output (Table 9, SFT; an empty input takes no line).
    `evaluation`: the test's prompt as `config` renders it, then a space and the target.
    """
    most = config.max_prompt_tokens
    if rendering == "evaluation":
        prompt = evaluation_prompt(task, example, tokenizer, config.rendering, config.shots, most)
        return prompt, as_text(f" {example.target}", tokenizer)

    def render(fields: dict[str, str]) -> str:
        parts = [part.format(**fields) for part in (task.records_instruction, task.records_input)]
        return "".join(f"{part}\n" for part in parts if part)

    completion = task.records_output.format(**example.fields, target=example.target)
    return fitted(example, tokenizer, render, most), as_text(completion, tokenizer)


def cue_prompt(task: Task, text: str, tokenizer: Tokenizer, rendering: Rendering) -> str:
    """The cue line of the task's prompt (`Solution:`) after a text that does not pose the task."""
    return _render(f"{text}\n{_cue(task.identification_template)}", tokenizer, rendering)


def bare_header(task: Task, tokenizer: Tokenizer, config: TaskConfig) -> str:
    """What opens an answer where nothing is asked: IFD's loss without an instruction.

    `evaluation`: the cue line, in a chat after an empty turn. `records`: a newline.
    """
    if config.sft.rendering == "records":
        return "\n"
    cue = _cue(task.few_shot_template if config.shots else task.identification_template)
    return cue if config.rendering == "bare" else _render(f"\n{cue}", tokenizer, "chat")


def fitted(
    example: Example, tokenizer: Tokenizer, render: Callable[[dict[str, str]], str], max_tokens: int | None
) -> str:
    """`render(fields)`, the longest field of the example cut at its end until the prompt has at most `max_tokens`.

    The instruction and the cue around that text stay whole; `ValueError` where they alone are too
    long. Control tokens in the fields stay text (`as_text`).
    """
    fields = {name: as_text(text, tokenizer) for name, text in example.fields.items()}
    longest = max(fields, key=lambda name: len(fields[name]))
    text = render(fields)
    while max_tokens is not None and (excess := len(encode(tokenizer, text)) - max_tokens) > 0:
        body = fields[longest]
        offsets = tokenizer(body, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if excess > len(offsets):
            raise ValueError(
                f"{example.id}: the prompt without its {longest} is longer than {max_tokens} tokens: raise "
                "max_prompt_tokens, or ask for fewer shots"
            )
        fields[longest] = body[: offsets[-excess][0]].rstrip()
        text = render(fields)
    return text


def as_text(text: str, tokenizer: Tokenizer) -> str:
    """`text` with a space in each control token (`<|im_end|>`), which then ends no turn."""
    for token in _control_tokens(tokenizer):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: Tokenizer | None) -> list[str]:
    known = tokenizer.added_tokens_decoder.values() if tokenizer is not None else ()
    return [token.content for token in known if token.special and len(token.content) > 1]


def _cue(template: str) -> str:
    return template.rsplit("\n", 1)[1]


@lru_cache(maxsize=KEPT)
def _render(prompt: str, tokenizer: Tokenizer, rendering: Rendering) -> str:
    if rendering == "bare":
        return prompt
    if not tokenizer.chat_template:
        raise ConfigError("the tokenizer has no chat template: set `rendering: bare`, or use a chat model")
    body, cue = prompt.rsplit("\n", 1)
    turn = [{"role": "user", "content": body}]
    # Only Qwen3's template reads enable_thinking; templates ignore what they do not name.
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    return tokenizer.apply_chat_template(turn, **options) + cue


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a rendered text, with exactly one BOS, also where a chat template wrote it."""
    return encode_all(tokenizer, [text])[0]


def encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of many texts, on all processors; tokens of the last KEPT are kept."""
    known = _READ.setdefault(tokenizer, {})
    if missing := [text for text in dict.fromkeys(texts) if text not in known]:
        found = tokenizer(missing, add_special_tokens=False)["input_ids"]
        known.update(zip(missing, (array("i", ids) for ids in found), strict=True))
    read = [known[text].tolist() for text in texts]
    if len(known) > KEPT:
        known.clear()
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [ids if ids[:1] == bos else bos + ids for ids in read]


def encode_pairs(
    tokenizer: Tokenizer, prompts: Sequence[str], completions: Sequence[str], eos: bool = True
) -> list[tuple[list[int], int]]:
    """Token ids of each prompt + completion (+ EOS), and how many of them are the prompt's.

    Control tokens in the completion stay text (`as_text`). Raises `ValueError` if the prompt's own
    tokens are not a prefix of them: activations read on the prompt alone would then not be those of
    the training sample.
    """
    if eos and tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no EOS token, so a target cannot be ended: set tokenizer.eos_token")
    end = [tokenizer.eos_token_id] * eos
    completions = [as_text(completion, tokenizer) for completion in completions]
    whole = encode_all(tokenizer, [p + c for p, c in zip(prompts, completions, strict=True)])
    alone = encode_all(tokenizer, prompts)
    for prompt, completion, ids, own in zip(prompts, completions, whole, alone, strict=True):
        if ids[: len(own)] != own:
            raise ValueError(
                f"the tokenizer merges the end of the prompt with the target: {prompt[-30:]!r} + "
                f"{completion[:30]!r}; start the target with a space, or end the prompt in a cue line"
            )
    return [(ids + end, len(own)) for ids, own in zip(whole, alone, strict=True)]


def samples(tokenizer: Tokenizer, examples: Sequence[Example], prompts: Sequence[str]) -> list[Sample]:
    """Examples under their rendered prompts, as the causal filter reads them."""
    read = encode_pairs(tokenizer, prompts, [f" {example.target}" for example in examples])
    return [Sample(e.id, ids[:n], ids, e) for e, (ids, n) in zip(examples, read, strict=True)]


def critical_position(
    tokenizer: Tokenizer, text: str, prompt: str, ids: Sequence[int] | None = None
) -> int:
    """Index p, in `encode(tokenizer, text)`, of the token that holds the colon which ends the prompt.

    text: the prompt and what follows, if anything does. ids: its tokens, where they are known.
    Found by character offset, so neither what follows nor a colon merged with its neighbours can
    move it. Raises `ValueError` if the prompt does not end in a colon.
    """
    if not prompt.endswith(":"):
        raise ValueError(f"the prompt must end in the colon ':' (U+003A), it ends in {prompt[-20:]!r}")
    ids = ids or encode(tokenizer, text)
    if text == prompt and tokenizer.convert_ids_to_tokens(ids[-1]).endswith(":"):
        return len(ids) - 1  # a prompt alone ends in the token of its colon, which costs no offsets
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for token, (first, end) in enumerate(spans):
        if first < len(prompt) <= end:
            return token + len(ids) - len(spans)  # BOS
    raise ValueError(f"no token holds the colon that ends {prompt[-20:]!r}: the tokenizer drops it")
