"""Selectors that look for what resembles the target examples: MONA, RDS+ and LESS, against literal versions."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from igds_utils import tiny
from igds_utils.config.settings import LessConfig
from igds_utils.engine import losses, prompts
from igds_utils.engine.lm import LM
from igds_utils.selection.needs import gradients
from igds_utils.selectors import Context, PoolSample, rank_pool
from igds_utils.selectors.mona import generalized_jaccard
from igds_utils.selectors.rds import round_robin

POOL = [PoolSample(f"s{i}", f"target {i}") for i in range(5)]
EXAMPLES = [PoolSample(f"e{i}", f"target {i}") for i in range(2)]


# ---- MONA ----


def test_sparse_jaccard_equals_the_dense_computation():
    random = np.random.default_rng(0)
    dense = random.random((20, 50)) * (random.random((20, 50)) < 0.2)
    dense[3] = 0
    prototype = random.random(50) * (random.random(50) < 0.5)
    expected = np.minimum(dense, prototype).sum(1) / np.maximum(dense, prototype).sum(1)
    for vectors in (dense, csr_matrix(dense), csr_matrix(dense.astype(np.float32))):
        np.testing.assert_allclose(generalized_jaccard(vectors, prototype), expected, rtol=1e-5)
    assert generalized_jaccard(dense[:1], dense[0]) == pytest.approx([1.0])
    assert generalized_jaccard(np.zeros((1, 3)), np.zeros(3)).tolist() == [1.0]
    with pytest.raises(ValueError, match="some are negative"):
        generalized_jaccard(-dense, prototype)


def test_mona_compares_with_the_mean_of_the_examples():
    pool = np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0], [4.0, 4.0]])
    context = Context(
        POOL,
        examples=EXAMPLES,
        sae_mean=lambda: csr_matrix(pool),
        example_sae_mean=lambda: csr_matrix(np.array([[4.0, 0.0], [0.0, 0.0]])),
        neuron_mean=lambda: pool[::-1],
        example_neuron_mean=lambda: np.array([[4.0, 0.0], [0.0, 0.0]]),
    )
    ranking = rank_pool("mona", context)
    assert ranking["sample_id"].tolist() == ["s0", "s2", "s4", "s1", "s3"]
    assert ranking["score"].tolist() == pytest.approx([1, 1 / 3, 2 / 8, 0, 0])
    assert rank_pool("mona_least", context)["sample_id"].tolist() == ["s1", "s3", "s4", "s2", "s0"]
    assert rank_pool("mona_neurons", context)["sample_id"].tolist()[0] == "s4"


# ---- RDS+ ----


def test_an_example_whose_best_is_taken_loses_that_turn():
    similarity = np.array([[0.9, 0.8], [0.3, 0.1], [0.1, 0.6], [0.2, 0.2], [0.2, 0.2]])
    order, rounds = round_robin(similarity, np.array([0, 1, 2, 4, 3]), 5)
    # rounds: 0 and (0); 1 and 2; 4 (before 3: equal, and its id is smaller) and (4); 3
    assert order.tolist() == [0, 1, 2, 4, 3] and rounds == 4
    assert round_robin(similarity, np.arange(5), 1)[0].tolist() == [0]


def test_round_robin_equals_the_authors_loop():
    similarity = np.random.default_rng(1).random((30, 4)).round(1)
    queues = [sorted(range(30), key=lambda i: (-column[i], i)) for column in similarity.T]
    saved, rounds = [], 0
    while len(saved) < 20:
        rounds += 1
        for queue in queues:
            saved = list(dict.fromkeys([*saved, queue.pop(0)]))
    order, found = round_robin(similarity, np.arange(30), 20)
    assert order.tolist() == saved[:20] and found == rounds


def test_rds_ranks_the_whole_pool():
    random = np.random.default_rng(0)
    states, wanted = random.normal(size=(5, 8)), random.normal(size=(2, 8))
    context = Context(
        POOL, examples=EXAMPLES, hidden_states=lambda: states, example_hidden_states=lambda: wanted
    )
    ranking = rank_pool("rds", context, size=3)
    assert sorted(ranking["sample_id"]) == [sample.id for sample in POOL]
    assert ranking.attrs["selector"]["facts"]["rounds"] == 2
    first = (states @ wanted.T)[:, 0].argmax()
    assert ranking["sample_id"][0] == f"s{first}"


# ---- LESS ----

CONFIG = LessConfig(rank=2, epochs=2, batch=2, dimensions=6, lr=1e-2)
TEXTS = [
    ("Solution:", " 12 + 7 = 19."),
    ("how many apples?", " 3"),
    ("Text: a Translation:", " user"),
    ("Text:", " 2"),
]


@pytest.fixture(params=["llama", "gemma2", "qwen3"])
def warm(request):
    lm = LM(tiny.model(request.param), tiny.tokenizer(), request.param)
    pairs = [prompts.encode_pair(lm.tokenizer, *text) for text in TEXTS]
    weights = gradients.add_lora(lm, CONFIG.rank)
    return lm, weights, pairs, gradients.warm_up(lm, weights, pairs, CONFIG)


def test_only_lora_weights_learn_and_the_rate_falls(warm):
    lm, weights, _, checkpoints = warm
    trained = {name for name, parameter in lm.model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert {name.split(".")[-4] for name in trained} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert [one.lr for one in checkpoints] == pytest.approx([1e-2 * 7 / 8, 1e-2 * 3 / 8])
    assert not torch.equal(checkpoints[0].weights, checkpoints[1].weights)
    assert checkpoints[0].weights.shape == (sum(weight.numel() for weight in weights),)


@pytest.mark.parametrize("batch_tokens", [1, 30, 1000])  # one by one, two at a time, all at once
def test_gradients_and_adam_steps_equal_the_literal_ones(warm, batch_tokens):
    lm, weights, pairs, checkpoints = warm
    first, last = checkpoints
    for checkpoint in (first, last):
        found = gradients.sample_gradients(lm, weights, checkpoint, pairs, batch_tokens)
        for (ids, n_prompt), gradient in zip(pairs, found, strict=True):
            lm.model.zero_grad()
            labels = torch.tensor([[losses.IGNORED] * n_prompt + ids[n_prompt:]])
            lm.model(input_ids=torch.tensor([ids]), labels=labels).loss.backward()
            literal = torch.cat([weight.grad.flatten() for weight in weights])
            assert (gradient - literal).norm() <= 1e-5 * literal.norm()
    m, v, g = last.first, last.second, found[0]
    expected = [
        (0.9 * a + 0.1 * b) / (0.999 * c + 0.001 * b * b + 1e-8) ** 0.5
        for a, b, c in zip(m, g, v, strict=True)
    ]
    torch.testing.assert_close(gradients.adam_step(g, last), torch.stack(expected))


def test_the_projection_is_one_matrix_of_signs_for_every_call(monkeypatch):
    monkeypatch.setattr(gradients, "BLOCK", 7)
    whole = gradients.project(torch.eye(20), 9)  # rows of the matrix itself, scaled to length 1
    signs = whole * 3
    assert set(signs.round(decimals=5).unique().tolist()) == {-1.0, 1.0}
    vectors = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    projected = torch.nn.functional.normalize(vectors @ signs, dim=-1)
    torch.testing.assert_close(gradients.project(vectors, 9), projected)
    torch.testing.assert_close(gradients.project(vectors[1:2], 9), projected[1:2])


def test_influence_is_the_weighted_cosine_with_the_mean_target_gradient():
    random = np.random.default_rng(0)
    steps, wanted = random.normal(size=(5, 2, 6)), random.normal(size=(2, 2, 6))
    rates = np.array([0.75, 0.25])
    steps *= rates[:, None] / np.linalg.norm(steps, axis=-1, keepdims=True)
    context = Context(POOL, examples=EXAMPLES, gradients=lambda: steps, example_gradients=lambda: wanted)
    ranking = rank_pool("less", context).set_index("sample_id")["score"]
    for i, sample in enumerate(POOL):
        cosines = [
            steps[i, c]
            @ wanted[:, c].mean(0)
            / np.linalg.norm(steps[i, c])
            / np.linalg.norm(wanted[:, c].mean(0))
            for c in (0, 1)
        ]
        assert ranking[sample.id] == pytest.approx(rates @ cosines)
