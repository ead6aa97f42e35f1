"""Language models from their references: fetched or converted, and put on their device."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from igds_utils import tiny
from igds_utils.config.refs import FolderRef, HubRef, Ref, TinyRef, WheelRef, describe
from igds_utils.data import hub
from igds_utils.engine import distributed
from igds_utils.engine.lm import LM

# Chat models wrapped as GGUF lose the id of the token that ends a turn.
END_OF_TURN = "<|im_end|>"
# transformers' `model_type`s that tests read, steer and decode; others keep their blocks elsewhere.
ARCHITECTURES = "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text cohere granite olmo2 smollm3".split()
CONVERSION = 2  # part of the name of a converted model's folder: raise it when `_convert_gguf` changes


def fast_matmul() -> None:
    """Let fp32 matrix products on the CPU go through oneDNN, up to four times faster, if that keeps fp32 accuracy.

    PyTorch does so only when less precision is allowed. Processors without bf16 matrix units then
    still compute in fp32; others would round, which one product tells.
    """
    torch.set_float32_matmul_precision("medium")
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(64, 512, generator=generator), torch.randn(256, 512, generator=generator)
    exact = x.double() @ w.double().T
    error = (torch.nn.functional.linear(x, w).double() - exact).abs().max() / exact.abs().max()
    if error > 1e-5:
        torch.set_float32_matmul_precision("highest")


def load_lm(ref: Ref, dtype: str = "float32") -> LM:
    """Load a model and its tokenizer in evaluation mode.

    dtype: "float32", "bfloat16" or "float16". Where it is put: `device_map`. Raises `SourceError` where the reference
    cannot be resolved or read, or names another architecture than those of `ARCHITECTURES`.
    """
    load_config(ref)  # refuses an architecture before its weights are fetched
    if torch.cuda.is_available():
        # it plans anew for every decoded token; backward it can give NaN under a mask
        torch.backends.cuda.enable_cudnn_sdp(False)
    else:
        fast_matmul()
    with _files(ref, weights=True) as folder:
        options = {"dtype": getattr(torch, dtype), "device_map": device_map()}
        # weights in a pickle are not read
        options |= {"use_safetensors": True, "output_loading_info": True}
        model, info = AutoModelForCausalLM.from_pretrained(folder, **options)
        if missing := sorted(info["missing_keys"]):  # transformers would make them up
            raise ValueError(f"its files hold no {', '.join(missing[:3])}")
    return LM(model.eval(), load_tokenizer(ref), describe(ref))


def load_config(ref: Ref) -> PretrainedConfig:
    """The configuration of a language model, without its weights; `SourceError` as of `load_lm`."""
    with _files(ref) as folder:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type not in ARCHITECTURES:
        reason = f"is a {config.model_type} model, an architecture that is not supported: "
        reason += f"{', '.join(ARCHITECTURES)} are"
    elif (folder / "adapter_config.json").is_file():
        reason = "is an adapter, with which another model would be fetched: merge them, and save that"
    elif "/" in str(config._attn_implementation):
        reason = f"asks for the code of {config._attn_implementation}, which is not run"
    else:
        return config
    raise hub.SourceError(f"{describe(ref)} {reason}")


def load_tokenizer(ref: Ref) -> PreTrainedTokenizerFast:
    """The tokenizer of a model, without its weights."""
    with _files(ref) as folder:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # where this is set, "Quoi ?" is decoded as "Quoi?": an output must be scored as it was written
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


@contextmanager
def readable(otherwise: str) -> Iterator[None]:
    """Raise `SourceError` with this text and the reason: libraries raise anything."""
    try:
        yield
    except (hub.SourceError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise hub.SourceError(f"{otherwise} ({type(error).__name__}: {reason})") from error


@contextmanager
def _files(ref: Ref, weights: bool = False) -> Iterator[Path]:
    """The folder with a model's files; says which of them could not be read, and what to do about it."""
    folder, mend = model_folder(ref, weights), "check its name in the preset, and its files"
    if isinstance(ref, HubRef):  # <cache>/models--<id>/snapshots/<commit>
        mend = f"if a file is damaged or missing, remove {folder.parent.parent} and it is fetched anew"
    with readable(f"could not load {describe(ref)}: {mend}"):
        yield folder


def first_device() -> torch.device:
    """Where models and SAEs are: on a GPU, without one in main memory.

    A process of a launch (LOCAL_RANK) and a job that makes a share (IGDS_GPU) have one of their own.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    own = os.environ.get("LOCAL_RANK" if distributed.processes() > 1 else "IGDS_GPU", 0)
    return torch.device("cuda", int(own) % torch.cuda.device_count())


def device_map() -> dict[str, int] | None:
    """Where transformers puts a model: on this process's GPU or, without one, in main memory (None).

    FSDP and DeepSpeed deal a model out themselves, so for them it stays in main memory.
    """
    sharded = any(os.environ.get(f"ACCELERATE_USE_{kind}") == "true" for kind in ("FSDP", "DEEPSPEED"))
    return None if sharded or not torch.cuda.is_available() else {"": first_device().index}


def model_folder(ref: Ref, weights: bool = True) -> Path:
    """The folder with a model's files, fetched, converted or made if need be."""
    models = hub.cache_root() / "models"
    match ref:
        case HubRef():
            return hub.snapshot(ref, hub.FILES if weights else hub.TOKENIZER)
        case FolderRef():
            return hub.local_folder(ref)
        case TinyRef():
            name = f"tiny-{ref.tiny}-{ref.seed}-v{tiny.VERSION}"
            return hub.whole(models / name, partial(tiny.save_model, ref.tiny, ref.seed))
        case WheelRef() if ref.file.endswith("/"):  # a whole folder: nothing to convert
            return hub.wheel_file(ref)
        case WheelRef():
            name = f"{ref.wheel}-{ref.version}-{ref.sha256[:12]}-v{CONVERSION}"
            return hub.whole(models / name, partial(_convert_gguf, ref))


def _convert_gguf(ref: WheelRef, folder: Path) -> None:
    """Dequantize a GGUF file to fp32 safetensors once, and undo what its round trip breaks.

    That is the end-of-turn token, padding, and a BOS forced onto every text (`prompts.encode` adds
    a prompt's one). The tokenizer's class is the general one: under that of the architecture,
    transformers 5 and other programs would build a sentencepiece tokenizer, as models of this
    architecture have it.
    """
    from tokenizers import processors

    gguf = hub.wheel_file(ref)
    print(f"converting {gguf.name} to safetensors (once)", flush=True)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    broken = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    backend = broken.backend_tokenizer
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    eos = END_OF_TURN if END_OF_TURN in broken.get_vocab() else broken.eos_token
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=broken.bos_token,
        eos_token=eos,
        pad_token=eos,
        unk_token=broken.unk_token,
        chat_template=broken.chat_template,
        model_input_names=["input_ids", "attention_mask"],
    )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for settings in (model.config, model.generation_config):
            setattr(settings, name, getattr(tokenizer, name))
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
