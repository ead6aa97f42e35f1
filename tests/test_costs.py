"""Operations and bytes against sums by hand."""

import pytest

from igds_utils.config.settings import Shape
from igds_utils.core import costs

SHAPE = Shape(parameters=1000 + 2 * 300, layers=2, width=10, kv_width=5, vocabulary=100)  # 300 a block, tied


def test_operations_of_a_forward_pass():
    tied, untied = SHAPE, SHAPE.model_copy(update={"tied": False, "parameters": 2000 + 600})
    assert costs.block_parameters(tied) == costs.block_parameters(untied) == 300
    a_token = 2 * 300 + 4 * 10 * 8 / 2
    assert costs.forward_flops(SHAPE, 7, 8) == 7 * 2 * a_token
    assert costs.forward_flops(SHAPE, 7, 8, layers=1, head_tokens=3) == 7 * a_token + 2 * 3 * 1000
    assert costs.training_flops(SHAPE, 7, 8) == 3 * (14 * a_token + 14 * 1000)
    assert costs.training_flops(SHAPE, 7, 8, True) == 3 * (14 * a_token + 14 * 1000) + 14 * a_token


@pytest.mark.parametrize("tokens, length", [(64, 8), (96, 32)])
def test_operations_equal_those_that_pytorch_counts(tokens, length):
    """Of a tiny Llama; the small parameters of norms are the only difference."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from igds_utils.engine import tiny

    model = tiny.model("llama")
    shape = Shape(parameters=model.num_parameters(), layers=4, width=32, kv_width=16, vocabulary=model.vocab_size,
                  tied=model.config.tie_word_embeddings)  # fmt: skip
    ids = torch.zeros(tokens // length, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(ids)
    products = counter.get_total_flops()
    ours = costs.forward_flops(shape, tokens, 0, head_tokens=tokens)
    attention = 4 * length * 32 * tokens * 4  # what the counter adds for it, the masked half too
    assert ours == pytest.approx(products, rel=0.02) or ours + attention == pytest.approx(products, rel=0.02)


def test_what_selectors_cost():
    def cost(*needs):
        return costs.selection_cost(SHAPE, needs, n=10, prompt=6, target=2, blocks=1, d_sae=40)

    loss, igds = cost("target_loss"), cost("task_feature_activations")
    assert (loss.tokens, igds.tokens) == (80, 60)
    assert loss.flops == costs.forward_flops(SHAPE, 80, 8, head_tokens=20)
    assert igds.flops == costs.forward_flops(SHAPE, 60, 6, layers=1)
    assert cost("target_loss", "bare_target_loss").tokens == 100
    assert cost("sae_mean").flops == costs.forward_flops(SHAPE, 80, 8, 1) + 2 * 80 * 10 * 40
    assert cost("tags", "examples") == costs.Cost(0, 0)
    assert cost("gradients").tokens == 4 * 80 == 4 * costs.need_tokens("gradients", 60, 20, less_epochs=1)


def test_every_need_of_a_selector_is_known():
    from igds_utils import selectors

    free = {"examples", "tags", "embeddings", "target_cut"}
    for name in selectors.names():
        for need in selectors.get(name).needs:
            counted = costs.need_tokens(need, 1, 1) > 0
            assert counted != (need in free or need.startswith("example_")), f"{name} needs {need}"


def test_decoding_is_bound_by_memory_for_few_rows_and_by_products_for_many():
    machine = costs.Machine(
        devices=1, teraflops=1e-6, terabytes=1e-9, memory_gb=1, use={"read": 1, "train": 1, "decode": 1}
    )
    weights = 2 * SHAPE.parameters
    one = costs.decode_seconds(SHAPE, machine, tokens=1, rows=1, length=0)
    assert one == pytest.approx(weights / 1e3)
    many = costs.decode_seconds(SHAPE, machine, tokens=1, rows=1e6, length=0)
    assert many == pytest.approx(costs.forward_flops(SHAPE, 1, 0, head_tokens=1) / 1e6)


def test_a_decoding_step_takes_no_less_than_launching_its_blocks():
    slow = costs.machines()["8 x H100 80 GB"].model_copy(update={"devices": 1, "block_seconds": 0.5})
    assert costs.decode_seconds(SHAPE, slow, tokens=60, rows=20, length=8) == pytest.approx(3 * 2 * 0.5)
    assert all(machine.block_seconds > 0 for machine in costs.machines().values())


def test_memory_of_a_pass_holds_the_bound_of_its_logits():
    from igds_utils.engine.batching import LOGIT_BYTES

    one, two = costs.pass_bytes(SHAPE, 1), costs.pass_bytes(SHAPE, 2)
    assert two - one == 10 * 2 * (2 + costs.KEPT_VALUES)
    assert 2 * one - two == 3 * LOGIT_BYTES


def test_what_a_training_process_holds():
    alone, copies, sharded = (
        dict(costs.training_bytes(SHAPE, 7, 2, *how)) for how in ((1, False), (1, True), (4, False))
    )
    state, exchanged = "fp32 weights, gradients and moments", "gradients that are exchanged"
    assert alone[state] == 16 * SHAPE.parameters and sharded[state] == alone[state] / 4
    assert alone["weights in 16 bit"] == 2 * SHAPE.parameters
    assert copies[exchanged] == 4 * SHAPE.parameters and exchanged not in alone
    assert "weights in 16 bit" not in dict(costs.training_bytes(SHAPE, 7, 4))
