"""Full-parameter fine-tuning with TRL's SFTTrainer under accelerate, on token ids.

    log = train(lm, pairs, config, seed=0, workdir=folder)      # lm.model is trained in place

Under `accelerate launch` (`igds_utils.core.launch`) several processes call it with the same
arguments and train together. The loss of a step is the mean over all target tokens of its global
batch, however many processes and micro-batches share it, so the loss curve is that of one process.
What the paper leaves open is fixed here: AdamW (betas 0.9 and 0.999), gradients clipped at norm 1,
the schedule and warm-up of the preset, loss on the target and its EOS alone, no packing.
"""

import json
import math
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from igds_utils.config.settings import SftConfig
from igds_utils.core.store import content_hash
from igds_utils.engine import distributed
from igds_utils.engine.batching import even_chunks, token_batches
from igds_utils.engine.lm import LM
from igds_utils.engine.losses import IGNORED, Pair, cut_pairs, token_losses

# What may differ between the runs of one training: how it is stored and computed, not what is learnt.
NOT_LEARNT_FROM = {"keep_weights", "checkpoint_steps", "gradient_checkpointing", "device_tokens"}


def train(
    lm: LM,
    pairs: Sequence[Pair],
    config: SftConfig,
    seed: int,
    workdir: Path,
    weights: Path | None = None,
    origin: Any = None,
) -> pd.DataFrame:
    """Fine-tune `lm.model` in place and return its log, one row an optimizer step.

    It is trained with fp32 weights, and comes back in its own precision.

    pairs: token ids of prompt + target + EOS and the number of prompt tokens
    (`prompts.encode_pairs`); a target that reaches beyond `config.max_length` is cut there. seed:
    fixes the order of the samples; the same call on the same kind of machine gives the same
    weights, bit by bit. workdir: for checkpoints, if `config.checkpoint_steps` asks for them; a
    training that was killed goes on from its last one, and a finished one removes them. origin:
    what names the model as it is given (plain values); checkpoints of another one are not gone on
    from. weights: a folder for the final weights (safetensors, gathered from all processes) and the
    tokenizer.

    Columns: step, loss (mean cross-entropy a target token of the global batch), lr, grad_norm
    (before clipping), tokens (prompt and target), target_tokens, seconds. Raises `ValueError` for a
    pair without target, and `FloatingPointError` if the loss is not finite.
    """
    samples = cut_pairs(pairs, config.max_length)
    if cut := sum(len(ids) > config.max_length for ids, _ in pairs):
        told = f"{cut} of {len(pairs)} targets reach beyond sft.max_length {config.max_length}: cut there"
        warnings.warn(told, stacklevel=2)
    order = global_batches([len(ids) for ids, _ in samples], config, seed)
    batches = [[samples[i] for i in batch] for batch in order]
    inputs = [samples, config.model_dump(exclude=NOT_LEARNT_FROM), seed, origin]
    own = workdir / content_hash(inputs)  # checkpoints of this very training
    arguments, precision = trainer_arguments(config, len(batches), seed, own), lm.model.dtype
    lm.model.float()  # AdamW at small learning rates loses its steps in 16-bit weights
    with _restored(lm.model), tqdm(total=len(batches), desc="train", unit="step") as bar:
        trainer = _make_trainer(lm, batches, arguments, config.device_tokens, bar)
        trainer.train(resume_from_checkpoint=distributed.on_main_process(lambda: last_checkpoint(own)))
        if weights is not None:
            _save(trainer, weights)
    distributed.on_main_process(lambda: shutil.rmtree(own, ignore_errors=True))
    log = pd.DataFrame([entry for entry in trainer.state.log_history if "loss" in entry])
    trainer.accelerator.free_memory()  # the optimizer's state would live on in reference cycles
    for parameter in lm.model.parameters():  # not the buffers: rotary frequencies stay in fp32
        parameter.data = parameter.data.to(precision)
    log["tokens"] = [sum(len(ids) for ids, _ in batch) for batch in batches]
    log["target_tokens"] = log["tokens"] - [sum(n_prompt for _, n_prompt in batch) for batch in batches]
    columns = ["step", "loss", "lr", "grad_norm", "tokens", "target_tokens", "seconds"]
    return log.rename(columns={"learning_rate": "lr"})[columns]


def global_batches(lengths: Sequence[int], config: SftConfig, seed: int) -> list[list[int]]:
    """Which samples every optimizer step sees: a random order per epoch, cut into global batches.

    Inside a batch the longest comes first, which changes only padding.
    """
    random = np.random.default_rng(seed)
    epochs = [random.permutation(len(lengths)).tolist() for _ in range(math.ceil(config.epochs))]
    order = [i for epoch in epochs for i in epoch][: max(1, round(config.epochs * len(lengths)))]
    return [sorted(batch, key=lambda i: (-lengths[i], i)) for batch in even_chunks(order, config.global_batch)]


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint of one training in a folder; older trainings beside it lose theirs.

    A checkpoint is whole where the trainer's state is, which is the last of its files:
    `get_last_checkpoint` alone would take one that was being written when the training was killed.
    """
    from transformers.trainer_utils import get_last_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    for checkpoint in folder.parent.glob("*/checkpoint-*"):
        with suppress(OSError, ValueError):
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf8"))
            if checkpoint.parent == folder:
                continue
        shutil.rmtree(checkpoint)
    return get_last_checkpoint(folder)


def dealt(batch: list[Pair], size: int, processes: int) -> list[list[Pair]]:
    """The shares of a global batch, longest first, that processes train on: `size` samples each, of like lengths.

    What fills a short share up has no target, so nothing is learnt from it; accelerate would take
    samples seen before. One process takes the batch as it is.
    """
    filler = [(batch[-1][0][:1], 1)] * (size * processes - len(batch)) if processes > 1 else []
    return [[*batch, *filler][rank::processes] for rank in range(processes)]


def trainer_arguments(config: SftConfig, steps: int, seed: int, workdir: Path):
    """What TRL's trainer is told (its `SFTConfig`) for a training of `steps` optimizer steps."""
    from trl import SFTConfig

    on_gpu = torch.cuda.is_available()  # weights that are dealt out to GPUs lie in main memory until then
    arguments = SFTConfig(
        output_dir=str(workdir),
        use_cpu=not on_gpu,
        seed=seed,
        num_train_epochs=1,  # the records already hold every epoch
        # a step is one batch of the trainer, which its `training_step` cuts into micro-batches
        per_device_train_batch_size=math.ceil(config.global_batch / distributed.processes()),
        learning_rate=config.lr,
        lr_scheduler_type=config.schedule,
        # rounded down, because the first warm-up step has lr 0, one of four steps of a small run
        warmup_steps=int(config.warmup_ratio * steps),
        weight_decay=config.weight_decay,
        optim="adamw_torch_fused",
        bf16=on_gpu and torch.cuda.is_bf16_supported(),
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,
        ddp_timeout=int(distributed.PATIENCE.total_seconds()),
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},  # the records are tokens and labels
        save_strategy="steps" if config.checkpoint_steps else "no",
        save_steps=config.checkpoint_steps or 1,
        save_total_limit=1,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu,
    )
    # a process trains one model, not a copy on every GPU that it sees
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _make_trainer(lm: LM, batches: list[list[Pair]], arguments, device_tokens: int, bar: tqdm):
    """TRL's trainer, fed with `batches` in their order, reporting to `bar`; a batch is one optimizer step."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback
    from trl import SFTTrainer

    size = arguments.per_device_train_batch_size
    shares = [dealt(batch, size, distributed.processes()) for batch in batches]
    # the first share has the longest samples: cut like it, all make as many passes
    longest = [[len(ids) for ids, _ in share[0]] for share in shares]
    parts = [token_batches(lengths, device_tokens) for lengths in longest]
    samples = chain.from_iterable(chain.from_iterable(shares))
    records = [{"input_ids": ids, "labels": [IGNORED] * n + ids[n:]} for ids, n in samples]

    class Trainer(SFTTrainer):
        clock = None  # when the last step ended

        def _send_telemetry(self):
            """Nothing about a run leaves the machine."""

        def _get_train_sampler(self, train_dataset=None):
            return SequentialSampler(self.train_dataset)

        def training_step(self, model, inputs, num_items_in_batch=None):
            # gradients of the micro-batches add up; processes exchange them after the last one
            self.clock = self.clock or time.perf_counter()
            step, loss = self.state.global_step, 0.0
            for rows in parts[step]:
                end = longest[step][rows[0]]  # what lies beyond the longest sample is padding
                part = {name: tensor[rows, :end] for name, tensor in inputs.items()}
                last = rows is parts[step][-1]
                self.accelerator.gradient_state._set_sync_gradients(last)
                with nullcontext() if last else self.accelerator.no_sync(model):
                    loss = loss + super().training_step(model, part, num_items_in_batch)
            return loss

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            # TRL's would score prompt positions too, and their entropy: most of the work of a small model.
            labels = inputs.pop("labels")
            loss = token_losses(model, labels, **inputs).sum() / num_items_in_batch
            # processes average their gradients, while the count of tokens is that of all of them
            return loss * self.accelerator.num_processes

        def log(self, logs, start_time=None):
            if "loss" in logs:
                step, now = self.state.global_step, time.perf_counter()
                if not math.isfinite(logs["loss"]):
                    raise FloatingPointError(
                        f"training diverged: the loss of step {step} is {logs['loss']}; "
                        f"lower sft.lr (now {self.args.learning_rate})"
                    )
                logs["seconds"], self.clock = now - self.clock, now
                bar.update(step - bar.n)
                bar.set_postfix(loss=logs["loss"])
            super().log(logs, start_time)

    data = Dataset.from_list(records)
    trainer = Trainer(model=lm.model, args=arguments, train_dataset=data, processing_class=lm.tokenizer)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _save(trainer, weights: Path) -> None:
    """Gather a trainer's weights and write them with the tokenizer, whole or not at all."""
    new = weights.with_name(f".{weights.name}.new")
    trainer.save_model(str(new))
    trainer.accelerator.wait_for_everyone()

    def replace() -> None:
        (new / "training_args.bin").unlink(missing_ok=True)  # pickled, and of no use to a reader
        shutil.rmtree(weights, ignore_errors=True)
        new.rename(weights)

    distributed.on_main_process(replace)


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Leave the model in evaluation mode, and it and its modules without what a trainer hangs on them."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)
        model.zero_grad(set_to_none=True)
        model.eval()
