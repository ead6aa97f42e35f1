"""Tiny random models of the true architectures, with tokenizer and SAEs, for tests and `smoke`."""

from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VERSION = 1  # in the name of the cache folder: raise it when anything below changes
WIDTH = 32
LAYERS = 4
D_SAE = 64
BOS, EOS = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = """Please reason step by step, and put your final answer within \\boxed{}. Solution: The final answer is
Use a sentence to summarize this following text: Summarization: Please translate the following text into French.
Text: Translation: user assistant how many apples does she have left? 12 + 7 = 19. 19 * 2 = 38."""


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with BOS, EOS and a chat template; any text round-trips."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator([CORPUS], trainer)
    own = {"chat_template": CHAT_TEMPLATE, "bos_token": BOS, "eos_token": EOS, "pad_token": EOS}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **own)


def config(architecture: str, vocabulary: int):
    """Configuration of a tiny `llama`, `gemma2` (sliding window, soft-capping) or `qwen3` model."""
    own = {"gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8}}.get(architecture, {})
    return AutoConfig.for_model(
        architecture, vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=64,
        num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        max_position_embeddings=512, bos_token_id=0, eos_token_id=1, pad_token_id=1, **own,
    )  # fmt: skip


def model(architecture: str, seed: int = 0):
    """A random model in fp32; weights are scaled up so that its outputs differ between prompts."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(config(architecture, len(tokenizer())))
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(std=0.15)
    return made.float().eval()


def save_model(architecture: str, seed: int, folder: Path) -> None:
    """Write a tiny model and its tokenizer where transformers can load them."""
    model(architecture, seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def sae(architecture: str = "jumprelu", seed: int = 0, width: int = WIDTH):
    """A random sae_lens SAE in its inference form, `jumprelu` or `topk` (k = 8)."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig

    draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    if architecture == "topk":
        made = TopKSAE(TopKSAEConfig(d_in=width, d_sae=D_SAE, k=8))
    else:
        made = JumpReLUSAE(JumpReLUSAEConfig(d_in=width, d_sae=D_SAE))
        made.threshold.data = draw(D_SAE).abs() * 0.1
    made.W_enc.data = draw(width, D_SAE) / width**0.5
    made.W_dec.data = torch.nn.functional.normalize(draw(D_SAE, width), dim=1)
    made.b_enc.data = draw(D_SAE) * 0.1
    made.b_dec.data = draw(width) * 0.1
    return made
