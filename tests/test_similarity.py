"""Selectors that look for what resembles the target examples, against literal versions."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pools import ids, made_pool, sample, samples
from scipy.sparse import csr_matrix

from igds_utils import tiny
from igds_utils.config.settings import LessConfig, SelectionConfig
from igds_utils.engine import losses, prompts
from igds_utils.engine.lm import LM
from igds_utils.selection import gradients
from igds_utils.selection.measurements import MEASUREMENTS
from igds_utils.selectors import rank_pool
from igds_utils.selectors.similarity import bm25, embedding, mona, rds, words

POOL, EXAMPLES = samples(*"abcde"), [sample("e0"), sample("e1")]


def test_words_keep_digits_operators_single_letters_and_stop_words():
    assert words("The sum of 12 + 7*x is $19.") == "the sum of 12 + 7 * x is $ 19 .".split()
    assert words("snake_case Été 3x") == ["snake", "_", "case", "été", "3", "x"]
    assert words("我有3个苹果。") == ["我", "有", "3", "个", "苹", "果", "。"]
    assert words("का + की") == ["का", "+", "की"]


def test_bm25_is_the_formula_of_lucene():
    """One query word: idf * tf / (tf + k1 (1 - b + b length / mean length)); k1 = 1.5, b = 0.75."""
    pool = made_pool(samples("apple apple pear", "apple", "plum plum", target=""))
    found = bm25(pool, samples("apple", target=""))
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    mean_length = 2
    expected = [idf * tf / (tf + 1.5 * (0.25 + 0.75 * n / mean_length)) for tf, n in [(2, 3), (1, 1), (0, 2)]]
    assert found == pytest.approx(expected, rel=1e-5)


def test_bm25_averages_the_highest_scores_over_the_examples():
    pool = made_pool(samples("apple", "pear pear", "plum", target=""))
    examples = samples("apple", "pear", "apple pear", target="")
    highest = np.sort([bm25(pool, [one]) for one in examples], axis=0)[-2:].mean(axis=0)
    assert bm25(pool, examples, top=2) == pytest.approx(highest)


def test_embedding_is_the_cosine_to_the_mean_of_unit_vectors():
    vectors = np.array([[1.0, 0.0], [math.sqrt(0.5), math.sqrt(0.5)], [0.0, -1.0]])
    examples = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert embedding(None, vectors, examples) == pytest.approx([math.sqrt(0.5), 1.0, -math.sqrt(0.5)])


@pytest.mark.slow
def test_the_default_encoder_puts_word_problems_together():
    run = SimpleNamespace(preset=SimpleNamespace(selection=SelectionConfig()))
    texts = "Tom has 3 apples and buys 4.", "Anna sells 2 of 9 pears.", "It rains in Paris."
    asked = samples(*texts, target="")
    pool = made_pool(asked)
    pool.run, pool.stored = run, lambda name, build, *about: build(pool)
    tom, anna, rain = MEASUREMENTS["embeddings"][0](pool)
    assert tom @ anna > 2 * max(tom @ rain, anna @ rain)


def test_sparse_jaccard_equals_the_dense_computation():
    random = np.random.default_rng(0)
    dense = random.random((20, 50)) * (random.random((20, 50)) < 0.2)
    dense[3] = 0
    prototype = random.random(50) * (random.random(50) < 0.5)
    expected = np.minimum(dense, prototype).sum(1) / np.maximum(dense, prototype).sum(1)
    for vectors in (dense, csr_matrix(dense), csr_matrix(dense.astype(np.float32))):
        np.testing.assert_allclose(mona(None, vectors, prototype[None]), expected, rtol=1e-5)
    assert mona(None, np.zeros((1, 3)), np.zeros((1, 3))).tolist() == [1.0]


def test_mona_compares_with_the_mean_of_the_examples():
    own = np.array([[2.0, 0], [0, 2], [1, 1], [0, 0], [4, 4]])
    examples = np.array([[4.0, 0.0], [0.0, 0.0]])
    of_examples = {"sae_mean": csr_matrix(examples), "neuron_mean": examples}
    measured = dict(sae_mean=csr_matrix(own), neuron_mean=own[::-1])
    pool = made_pool(POOL, examples=EXAMPLES, of_examples=of_examples, **measured)
    ranking = rank_pool("mona", pool)
    assert ids(ranking) == ["s0", "s2", "s4", "s1", "s3"]
    assert ranking["score"].tolist() == pytest.approx([1, 1 / 3, 2 / 8, 0, 0])
    assert ids(rank_pool("mona_least", pool)) == ["s1", "s3", "s4", "s2", "s0"]
    assert ids(rank_pool("mona_neurons", pool))[0] == "s4"


def test_round_robin_equals_the_authors_loop():
    similarity = np.random.default_rng(1).random((30, 4)).round(1)
    queues = [sorted(range(30), key=lambda i: (-column[i], i)) for column in similarity.T]
    saved = []
    while len(saved) < 20:
        for queue in queues:
            saved = list(dict.fromkeys([*saved, queue.pop(0)]))
    pool = made_pool([sample(f"s{i:02d}") for i in range(30)])
    assert rds(pool, 20, similarity, np.eye(4)).order.tolist() == saved[:20]


CONFIG = LessConfig(rank=2, epochs=2, batch=2, dimensions=6, lr=1e-2)
TEXTS = [("Solution:", " 12 + 7 = 19."), ("how many apples?", " 3"), ("Text: a:", " user"), ("Text:", " 2")]


@pytest.fixture(params=["llama", "gemma2", "qwen3"])
def warm(request):
    lm = LM(tiny.model(request.param), tiny.tokenizer(), request.param)
    pairs = prompts.encode_pairs(lm.tokenizer, *zip(*TEXTS, strict=True))
    weights = gradients.add_lora(lm, CONFIG.rank)
    return lm, weights, pairs, gradients.warm_up(lm, weights, pairs, CONFIG)


def test_only_lora_weights_learn_and_the_rate_falls(warm):
    lm, weights, _, checkpoints = warm
    trained = {name for name, parameter in lm.model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert {name.split(".")[-4] for name in trained} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert checkpoints["lr"].tolist() == pytest.approx([1e-2 * 7 / 8, 1e-2 * 3 / 8])
    one, two = checkpoints["weights"]
    assert one.shape == (sum(weight.numel() for weight in weights),) and (one != two).any()


def test_gradients_and_adam_steps_equal_the_literal_ones(warm):
    lm, weights, pairs, checkpoints = warm
    for _, *vectors in checkpoints.itertuples(index=False):
        values, m, v = map(torch.tensor, vectors)
        found = list(gradients.sample_gradients(lm, weights, values, pairs))
        for (tokens, n_prompt), gradient in zip(pairs, found, strict=True):
            lm.model.zero_grad()
            labels = torch.tensor([[losses.IGNORED] * n_prompt + tokens[n_prompt:]])
            lm.model(input_ids=torch.tensor([tokens]), labels=labels).loss.backward()
            literal = torch.cat([weight.grad.flatten() for weight in weights])
            assert (gradient - literal).norm() <= 1e-5 * literal.norm()
    g = found[0]
    expected = (0.9 * m + 0.1 * g) / (0.999 * v + 0.001 * g * g + 1e-8) ** 0.5
    torch.testing.assert_close(gradients.adam_step(g, m, v), expected)


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
    ranking = rank_pool("less", made_pool(POOL, gradients=steps, example_gradients=wanted))
    mean = wanted.mean(axis=0)
    cosines = (steps * mean).sum(-1) / np.linalg.norm(steps, axis=-1) / np.linalg.norm(mean, axis=-1)
    assert ranking.sort_values("sample_id")["score"].tolist() == pytest.approx((cosines @ rates).tolist())
