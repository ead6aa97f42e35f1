"""Tiny random models of the paper's architectures and of SmolLM2, as their repositories hold them.

Residual widths are the true ones where sae_lens fixes them by the name of the SAEs (Gemma, Qwen); all else is tiny.
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaTokenizerFast,
    GPT2TokenizerFast,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2TokenizerFast,
    Qwen3Config,
)

from igds_utils import tiny

LAYERS = {"gemma2": 2, "llama": 3, "qwen3": 2, "smollm2": 3}
VOCABULARY = 700
# The words of prompts and targets, so that a prompt stays a few dozen tokens long.
CORPUS = f"""{tiny.CORPUS} Please translate the following text into Chinese. model Hello! has buys more. now? Ann
Here are some examples: as the following format. ### Problem: ### Solution: Find the domain of the expression. If
#Person1# : Hello! #Person2# : talks about her new house with many rooms. How many have"""
GEMMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n{{ message['content'] }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
SPECIAL = {
    "gemma2": "<pad> <eos> <bos> <unk> <start_of_turn> <end_of_turn>",
    "llama": "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>",
    "qwen3": "<|endoftext|> <|im_start|> <|im_end|>",
    "smollm2": "<|endoftext|> <|im_start|> <|im_end|>",
}


@cache
def _backend(architecture: str) -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL[architecture].split(),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([CORPUS], trainer)
    if architecture == "llama":  # as in the true file, BOS is put before whatever is tokenized
        backend.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
        )
    return backend.to_str()


def tokenizer(architecture: str, chat: bool) -> PreTrainedTokenizerFast:
    """Special tokens, BOS habits and chat template of the true tokenizers."""
    backend = Tokenizer.from_str(_backend(architecture))
    match architecture:
        case "gemma2":
            made = GemmaTokenizerFast(tokenizer_object=backend)
            made.chat_template = GEMMA_CHAT if chat else None
        case "llama":  # without a padding token
            ends = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>" if chat else "<|end_of_text|>"}
            made = PreTrainedTokenizerFast(tokenizer_object=backend, **ends)
            made.chat_template = LLAMA_CHAT if chat else None
        case "qwen3":  # without BOS; the base model has a chat template too
            end = "<|im_end|>" if chat else "<|endoftext|>"
            made = Qwen2TokenizerFast(tokenizer_object=backend, eos_token=end, pad_token="<|endoftext|>")
            made.chat_template = QWEN_CHAT
        case "smollm2":
            begin, end = ("<|im_start|>", "<|im_end|>") if chat else ("<|endoftext|>", "<|endoftext|>")
            made = GPT2TokenizerFast(tokenizer_object=backend, bos_token=begin, eos_token=end)
            made.chat_template = QWEN_CHAT if chat else None
    return made


def config(architecture: str):
    shared = dict(
        vocab_size=VOCABULARY, intermediate_size=32, num_hidden_layers=LAYERS[architecture],
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=4096,
    )  # fmt: skip
    match architecture:
        case "gemma2":
            ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
            return Gemma2Config(hidden_size=2304, sliding_window=64, query_pre_attn_scalar=8, **shared, **ids)
        case "llama":
            return LlamaConfig(hidden_size=64, bos_token_id=0, eos_token_id=1, **shared)
        case "smollm2":
            shared |= {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True}
            return LlamaConfig(hidden_size=64, **shared)
        case "qwen3":
            return Qwen3Config(hidden_size=4096, eos_token_id=0, pad_token_id=0, **shared)


def write(architecture: str, chat: bool, folder: Path) -> None:
    """A repository: configuration, tokenizer, bf16 weights in shards with their index."""
    with torch.random.fork_rng():
        torch.manual_seed(int(chat))
        model = AutoModelForCausalLM.from_config(config(architecture))
    mine = tokenizer(architecture, chat)
    model.generation_config.eos_token_id = sorted({mine.eos_token_id, model.config.eos_token_id})
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=model.get_memory_footprint() // 3)
    mine.save_pretrained(folder)
    if architecture == "llama":  # whose repository holds the weights twice: these must not be fetched
        (folder / "original").mkdir()
        (folder / "original/consolidated.00.pth").write_bytes(bytes(1000))


IDS = {  # of the base model and of the one that follows instructions
    "gemma2": ("google/gemma-2-2b", "google/gemma-2-2b-it"),
    "llama": ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"),
    "qwen3": ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B"),
    "smollm2": ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct"),
}
MODELS = {
    name: partial(write, architecture, chat)
    for architecture, names in IDS.items()
    for chat, name in enumerate(names)
}
