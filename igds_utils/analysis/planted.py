"""A tiny model with a known task feature, on which every stage is tested against the truth.

A prompt is a heap of words; the answer is the one of "yes" and "no" that stands in it more
often. The model counts words exactly, and says "unsure" unless (1 + s) * #sure > LOUD;
amplifying its feature "confidence" makes s positive. Where yes and no are almost equally
frequent, the reference is a coin flip. So every answer, score and delta follows.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerFast

from igds_utils import tiny
from igds_utils.engine.activations import critical_residuals
from igds_utils.engine.features import Feature, features_of
from igds_utils.engine.lm import LM
from igds_utils.engine.prompts import samples
from igds_utils.engine.steering import Steering
from igds_utils.identification import intervention
from igds_utils.tasks.examples import Example

COUNTED, UNSURE, CUE = ("sure", "maybe", "yes", "no", "hint"), "unsure", "Answer:"
FILLERS = ("tree", "stone", "river", "cloud", "lamp", "road", "glass", "wind")
WORDS, MAYBES = 28, 4  # of a text, and "maybe" among them
AMBIGUOUS, HINTED = 0.6, 0.2  # shares of prompts
LOUD, STRONG, WEAK, HINT, CANDIDATES = 4.8, 2.0, 0.3, 9.0, 36
# Dimensions of the residual stream, after those of a token's own word: counts of words, what
# lifts all answers, noise
COUNT, FORMAT, NOISE = 6, 11, 12


class Dictionaries(dict[int, object]):
    """One sae_lens SAE a layer, with what recall asks of `engine.sae.Saes`."""

    device, layers, drop = torch.device("cpu"), property(list), lambda self: None


@dataclass
class Planted:
    """A model, its SAEs, and the features whose effects are known, by their role.

    confidence: #sure counts 1 + STRONG times. weak: 1 + WEAK times. twin: fires alike, changes
    nothing. format: all answers become likelier alike. hesitation: #maybe counts twice. hint:
    fires on a fifth of the prompts, which it makes the model answer. All other candidates turn
    answers round on ambiguous prompts.
    """

    lm: LM
    saes: Dictionaries
    roles: dict[str, Feature]
    candidates: list[Feature]  # all that fire on at least 80 % of prompts


def draw(n: int, seed: int) -> list[Example]:
    """Prompts in which #sure is uniform in 0..9; `meta` holds the counts of the words."""
    random, made = Random(f"planted/{seed}"), []
    for number in range(n):
        ambiguous, top, other = random.random() < AMBIGUOUS, *random.sample(["yes", "no"], 2)
        counts = {"sure": random.randrange(10), "maybe": MAYBES}
        counts["hint"] = int(random.random() < HINTED)
        counts |= {top: 4, other: 3} if ambiguous else {top: 7, other: 0}
        words = list(Counter(counts).elements())
        words += random.choices(FILLERS, k=WORDS - len(words))
        random.shuffle(words)
        right = random.choice([top, other]) if ambiguous else top
        text = {"text": " ".join(words)}
        made.append(Example(f"s{seed}-{number:04d}", text, right, (right,), counts))
    return made


def prompt(example: Example) -> str:
    """The text and the cue, whose colon is the critical position."""
    return f"{example.fields['text']}\n{CUE}"


def answer(counts: dict[str, int], role: str = "", scale: float = 1.0) -> str:
    """What the model says while the feature of a role is amplified, by arithmetic."""
    heard = (1 + {"confidence": STRONG, "weak": WEAK}.get(role, 0.0) * scale) * counts["sure"]
    heard += HINT * scale * counts["hint"] * (role == "hint")
    loud = heard > LOUD * (1 + scale * (role == "hesitation"))
    return max("yes", "no", key=counts.get) if loud else UNSURE


def true_changes(examples: Sequence[Example], role: str, scale: float = 1.0) -> np.ndarray:
    """P'(x) - P(x) of each example under a role's feature: (n,) of -1, 0 and 1."""
    before = np.array([answer(e.meta) == e.target for e in examples], float)
    return np.array([answer(e.meta, role, scale) == e.target for e in examples]) - before


def build(architecture: str = "llama", planted: bool = True, seed: int = 0) -> Planted:
    """A tiny `llama`, `gemma2` or `qwen3` that does the task, an SAE of 64 features a block.

    planted: without it confidence, weak and hint change nothing; no feature raises the score.
    """
    lm = LM(_model(architecture, seed), _tokenizer(), f"planted-{architecture}")
    texts = [prompt(example) for example in draw(256, seed=10_000 + seed)]
    residual = critical_residuals(lm, texts, list(range(lm.n_layers)))
    generator = torch.Generator().manual_seed(seed)
    saes = Dictionaries({layer: _noise_sae(h, generator) for layer, h in residual.items()})
    # counts are there after block 1
    places = [Feature(layer, index) for layer in saes if layer for index in range(tiny.D_SAE)]
    Random(seed).shuffle(places)
    axes = torch.eye(tiny.WIDTH)
    (sure, maybe, yes, no, hint), idle = axes[COUNT : COUNT + len(COUNTED)], axes[NOISE]
    slightly = WEAK * sure + (1 - WEAK**2) ** 0.5 * idle
    louder, slightly = (sure, slightly) if planted else (idle, idle)
    written = {  # what a feature reads, and its direction d_i of norm 1
        "confidence": (STRONG * sure, louder), "twin": (STRONG * sure, idle),
        "weak": (sure, slightly), "format": (maybe, axes[FORMAT]),
        "hesitation": (maybe, maybe), "hint": (HINT * hint, louder),
    }  # fmt: skip
    roles = dict(zip(written, places, strict=False))
    turning = places[len(roles) : CANDIDATES + 1]
    for role, feature in roles.items():
        sae, i = saes[feature.layer], feature.index
        sae.W_enc[:, i], sae.W_dec[i] = written[role]
        sae.b_enc[i], sae.threshold[i] = 0.0, 0.5
    for number, feature in enumerate(turning):
        # Two standard deviations up it fires on 98 % of prompts; it turns ambiguous ones round.
        sae, i = saes[feature.layer], feature.index
        sae.b_enc[i] = (sae.b_enc[i] + 2) / 2**0.5
        sae.W_enc[:, i] /= 2**0.5
        sae.W_dec[i] = (yes - no) * (-1) ** number / 2**0.5
    frequent = [feature for role, feature in roles.items() if role != "hint"]
    return Planted(lm, saes, roles, frequent + turning)


def _noise_sae(residual: torch.Tensor, generator: torch.Generator):
    """An SAE whose features read noise in standard units, fire on half the prompts, write noise."""
    sae, noise = tiny.sae().requires_grad_(False), torch.zeros(2, tiny.D_SAE, tiny.WIDTH)
    noise[..., NOISE:] = torch.randn(noise[..., NOISE:].shape, generator=generator)
    read = residual @ noise[0].T
    spread, middle = read.std(0), read.median(0).values
    sae.W_enc.data, sae.b_enc.data = noise[0].T / spread, -middle / spread
    sae.W_dec.data = torch.nn.functional.normalize(noise[1], dim=1)
    sae.b_dec.data, sae.threshold.data = torch.zeros(tiny.WIDTH), torch.zeros(tiny.D_SAE)
    return sae


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [tiny.BOS, tiny.EOS, *COUNTED, UNSURE, CUE, *FILLERS]
    ids = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(ids, unk_token=FILLERS[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": tiny.BOS, "eos_token": tiny.EOS, "pad_token": tiny.EOS}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@torch.no_grad()
def _model(architecture: str, seed: int):
    """A tiny random model in which block 1 counts words, and the head compares the counts.

    All other weights write into the noise alone, which the head does not read. The norms'
    epsilon is so large that they pass on their input as it is.
    """
    model, epsilon, gemma = tiny.model(architecture, seed), 1e6, architecture == "gemma2"
    for norm in model.modules():
        if type(norm).__name__.endswith("RMSNorm"):
            setattr(norm, "eps" if gemma else "variance_epsilon", epsilon)
            norm.weight.fill_(epsilon**0.5 - gemma)  # Gemma's scales by 1 + weight
    for block in model.get_decoder().layers:
        block.self_attn.o_proj.weight[:NOISE] = 0
        block.mlp.down_proj.weight[:NOISE] = 0
    attention = model.get_decoder().layers[1].self_attn  # Gemma's block 0 sees a short window
    attention.q_proj.weight.zero_()
    attention.v_proj.weight[: attention.head_dim] = 0  # of the first head of keys and values
    embedding, head = model.get_input_embeddings(), torch.zeros_like(model.lm_head.weight)
    own, counted = torch.arange(len(COUNTED) + 1), torch.arange(len(COUNTED))  # + 2: token ids
    embedding.weight[:, :NOISE] = 0
    embedding.weight[own + 2, own] = tiny.WIDTH**-0.5 if gemma else 1.0  # which Gemma undoes
    attention.v_proj.weight[counted, counted] = 1
    # with BOS and cue: a mean becomes a count
    attention.o_proj.weight[COUNT + counted, counted] = WORDS + 2
    yes, no, unsure = 4, 5, 7
    head[[yes, no], COUNT] = 0.5
    head[yes, COUNT + 2] = head[no, COUNT + 3] = 0.01  # decides between them, makes none loud
    head[unsure, COUNT + 1] = 0.5 * LOUD / MAYBES
    head[unsure + 2 :, COUNT + 1] = 0.5 * (LOUD - 0.2) / MAYBES  # going on is almost as likely
    head[[yes, no, unsure], FORMAT] = 2.0
    head[1, [2, 3, 5]] = 200.0  # EOS after an answer
    model.lm_head.weight = torch.nn.Parameter(head)
    return model


def effects(
    model: Planted, features: Sequence[Feature], examples: Sequence[Example], **steering
) -> pd.DataFrame:
    """Generated and forced effects; the score is exact match. steering: as for `Steering`."""
    read = samples(model.lm.tokenizer, examples, [prompt(example) for example in examples])

    def exact(outputs: Sequence[str], asked: Sequence[Example]) -> list[float]:
        return [float(said == one.target) for said, one in zip(outputs, asked, strict=True)]

    shared = model.lm, Steering(model.saes, features, **steering), features, read
    generated = intervention.generated_effects(*shared, exact, max_new_tokens=2)
    return generated.merge(intervention.forced_effects(*shared))


def tossed(
    table: pd.DataFrame, examples: Sequence[Example], n: int, seed: int
) -> list[pd.DataFrame]:
    """`effects` on n of the examples for validation and on n others, coins tossed anew."""
    random, known = np.random.default_rng(seed), {example.id: example for example in examples}
    parts, right = random.choice(list(known), (2, n), replace=False), {}
    for name in parts.ravel():
        own = known[name]
        coin = own.meta["yes"] * own.meta["no"]
        right[name] = random.choice(["yes", "no"]) if coin else own.target
    rows = table[table["sample_id"].isin(right)].copy()
    for side in ("original", "amplified"):
        rows[f"score_{side}"] = (rows[f"output_{side}"] == rows["sample_id"].map(right)) * 1.0
    return [rows[rows["sample_id"].isin(part)] for part in parts]


def choose(effects: pd.DataFrame, recalled: pd.DataFrame) -> Feature:
    """The first of `intervention.rank_features`, without any interval."""
    effects = effects.assign(delta=intervention.change(effects, "score"))
    effects["delta_loglik"] = intervention.change(effects, "loglik")
    columns = list(intervention.QUANTITIES.values())
    means = effects.groupby(["layer", "feature"], as_index=False)[columns].mean()
    return features_of(intervention.rank_features(means, recalled))[0]
