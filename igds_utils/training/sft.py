"""Full-parameter supervised fine-tuning: TRL's SFTTrainer under accelerate, on samples that are already tokens.

    log = train(lm, pairs, config, seed=0, workdir=folder)      # lm.model is trained in place

Under `accelerate launch` (`igds_utils.core.launch`) several processes call it with the same arguments and train
together: the global batches, and so the loss curve, are those of one process.
What the paper leaves open is fixed here: AdamW (betas 0.9 and 0.999), gradients clipped at norm 1, the schedule and
warm-up of the preset, loss on the target and its EOS alone, no packing.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from igds_utils.engine.batching import even_chunks
from igds_utils.engine.lm import LM
from igds_utils.engine.losses import IGNORED, Pair, check_pair, token_losses

LOG_COLUMNS = ["step", "loss", "lr", "grad_norm", "tokens", "target_tokens", "seconds"]
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
# What may differ between the runs of one training: how it is stored and computed, not what is learnt.
NOT_LEARNT_FROM = {"keep_weights", "checkpoint_steps", "gradient_checkpointing"}


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

    It is trained with fp32 weights, and comes back in the precision in which it was given.

    pairs: token ids of prompt + target + EOS and the number of prompt tokens (`prompts.encode_pair`); a target that
    reaches beyond `config.max_length` is cut there. seed: fixes the order of the samples; the same call on the same
    kind of machine gives the same weights, bit by bit. workdir: for checkpoints, if `config.checkpoint_steps` asks
    for them; a training that was killed goes on from its last one, and a finished one removes them. origin: what names
    the model as it is given (plain values); checkpoints of another one are not gone on from. weights: a folder for the
    final weights (safetensors, gathered from all processes) and the tokenizer.

    Columns: step, loss (mean cross-entropy a target token of the global batch), lr, grad_norm (before clipping),
    tokens (prompt and target), target_tokens, seconds.
    Raises `ValueError` for no pairs, a pair without target, or batch sizes that do not divide, and
    `FloatingPointError` if the loss is not finite.
    """
    samples = _fitting(pairs, config.max_length)
    batches = global_batches([len(ids) for ids, _ in samples], config, seed)
    inputs = [samples, config.model_dump(exclude=NOT_LEARNT_FROM), seed, origin]
    own = workdir / content_hash(inputs)  # checkpoints of this very training
    arguments, precision = _arguments(config, len(batches), seed, own), lm.model.dtype
    lm.model.float()  # AdamW at small learning rates loses its steps in 16-bit weights
    with _restored(lm.model), tqdm(total=len(batches), desc="train", unit="step") as bar:
        trainer = _make_trainer(lm, [[samples[i] for i in batch] for batch in batches], arguments, bar)
        trainer.train(resume_from_checkpoint=distributed.on_main_process(lambda: last_checkpoint(own)))
        if weights is not None:
            _save(trainer, weights)
    distributed.on_main_process(lambda: shutil.rmtree(own, ignore_errors=True))
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    trainer.accelerator.free_memory()  # the optimizer's state would live on in reference cycles
    for parameter in lm.model.parameters():  # not the buffers: rotary frequencies stay in fp32
        parameter.data = parameter.data.to(precision)
    return pd.DataFrame(steps).rename(columns={"learning_rate": "lr"})[LOG_COLUMNS]


def global_batches(lengths: Sequence[int], config: SftConfig, seed: int) -> list[list[int]]:
    """Which samples every optimizer step sees: a random order per epoch, cut into global batches.

    Inside a batch the longest comes first. Its gradient is a mean over all its target tokens, so the order within it
    changes nothing but the padding: devices hold samples of like length together.
    """
    if not lengths:
        raise ValueError("no samples to train on: the selection is empty")
    random = np.random.default_rng(seed)
    epochs = [random.permutation(len(lengths)).tolist() for _ in range(math.ceil(config.epochs))]
    order = [i for epoch in epochs for i in epoch][: max(1, round(config.epochs * len(lengths)))]
    return [
        sorted(batch, key=lambda i: (-lengths[i], i)) for batch in even_chunks(order, config.global_batch)
    ]


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint of one training in a folder; older trainings beside it lose theirs.

    A checkpoint is whole where the trainer's state is, which is the last of its files: `get_last_checkpoint` alone
    would take one that was being written when the training was killed.
    """
    from transformers.trainer_utils import get_last_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    for checkpoint in folder.parent.glob("*/checkpoint-*"):
        if checkpoint.parent != folder or not _is_whole(checkpoint):
            shutil.rmtree(checkpoint)
    return get_last_checkpoint(folder)


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf8"))
    except (OSError, ValueError):
        return False
    return True


def accumulation_steps(config: SftConfig, processes: int) -> int:
    """Forward passes a device makes for one optimizer step; raises `ValueError` where the sizes do not divide."""
    at_once = config.device_batch * processes
    if config.global_batch % at_once:
        raise ValueError(
            f"sft.global_batch {config.global_batch} is no multiple of sft.device_batch {config.device_batch} x "
            f"{processes} processes = {at_once}: change one of them"
        )
    return config.global_batch // at_once


def _fitting(pairs: Sequence[Pair], max_length: int) -> list[Pair]:
    """The pairs, with targets cut at `max_length` tokens of prompt and target."""
    for number, (ids, n_prompt) in enumerate(pairs):
        check_pair(ids, n_prompt, number)
        if n_prompt >= max_length:
            raise ValueError(
                f"sample {number}: its prompt alone has {n_prompt} tokens, sft.max_length is {max_length}: raise it, "
                "or cut the body of the prompt"
            )
    if cut := sum(len(ids) > max_length for ids, _ in pairs):
        warnings.warn(
            f"{cut} of {len(pairs)} targets reach beyond sft.max_length {max_length}: cut there", stacklevel=3
        )
    return [(ids[:max_length], n_prompt) for ids, n_prompt in pairs]


def _arguments(config: SftConfig, steps: int, seed: int, workdir: Path):
    from trl import SFTConfig

    on_gpu = torch.cuda.is_available()  # weights that are dealt out to GPUs lie in main memory until then
    arguments = SFTConfig(
        output_dir=str(workdir),
        use_cpu=not on_gpu,
        seed=seed,
        num_train_epochs=1,  # the records already hold every epoch
        per_device_train_batch_size=config.device_batch,
        gradient_accumulation_steps=accumulation_steps(config, distributed.processes()),
        learning_rate=config.lr,
        lr_scheduler_type=SCHEDULES[config.schedule],
        # rounded down: transformers rounds up, and the first warm-up step has lr 0, one of four steps of a small run
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


def _make_trainer(lm: LM, batches: list[list[Pair]], arguments, bar: tqdm):
    """TRL's trainer, fed with `batches` in their order, reporting to `bar`."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTTrainer

    class Trainer(SFTTrainer):
        def _send_telemetry(self):
            """Nothing about a run leaves the machine."""

        def _get_train_sampler(self, train_dataset=None):
            return SequentialSampler(self.train_dataset)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            # TRL's would score prompt positions too, and their entropy: most of the work of a small model.
            labels = inputs.pop("labels")
            losses, _ = token_losses(model, labels, **inputs)
            # processes average their gradients, while the count of tokens is that of all of them
            return losses.sum() / num_items_in_batch * self.accelerator.num_processes

        def log(self, logs, start_time=None):
            if "loss" in logs:
                step = self.state.global_step
                if not math.isfinite(logs["loss"]):
                    raise FloatingPointError(
                        f"training diverged: the loss of step {step} is {logs['loss']}; "
                        f"lower sft.lr (now {self.args.learning_rate})"
                    )
                logs |= counts[step - 1] | {"seconds": time.perf_counter() - clock.last}
                clock.last = time.perf_counter()
            super().log(logs, start_time)

    class Clock(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            bar.update(state.global_step)
            self.last = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            bar.update()

        def on_log(self, args, state, control, logs, **kwargs):
            if "loss" in logs:
                bar.set_postfix(loss=logs["loss"])

    clock = Clock()
    counts = [
        {"tokens": sum(len(ids) for ids, _ in batch), "target_tokens": sum(len(ids) - n for ids, n in batch)}
        for batch in batches
    ]
    at_once = arguments.per_device_train_batch_size * distributed.processes()
    records = [
        {"input_ids": ids, "labels": [IGNORED] * n_prompt + ids[n_prompt:]}
        for batch in batches
        for ids, n_prompt in _filled(batch, at_once)
    ]
    trainer = Trainer(
        model=lm.model,
        args=arguments,
        train_dataset=Dataset.from_list(records),
        processing_class=lm.tokenizer,
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _filled(batch: list[Pair], at_once: int) -> list[Pair]:
    """A batch that all processes can share evenly: accelerate would fill a short one with samples seen before.

    What is added has no target, so nothing is learnt from it; one process needs none.
    """
    missing = -len(batch) % at_once if distributed.processes() > 1 else 0
    return [*batch, *[(batch[-1][0][:1], 1)] * missing]


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
