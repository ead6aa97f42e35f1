"""What selectors ask of a pool. Each measurement is a function of the pool, made once, stored, and shared by all.

Names that begin with `example_` are measured on examples of the target task, the others on the pool.
"""

from igds_utils.selection.needs import critical, gradients, hidden, losses, texts, tokens
from igds_utils.selection.needs.samples import Measured, Pool, Samples

# In the order in which a pool is measured, so that no model is loaded twice: what takes a model of its own, what the
# model to be trained reads, and last what the one reads whose features are known.
MEASUREMENTS = {
    "embeddings": texts.embeddings,
    "example_embeddings": texts.example_embeddings,
    "tags": texts.tags,
    "gradients": gradients.gradients,
    "example_gradients": gradients.example_gradients,
    "target_loss": losses.target_loss,
    "target_cut": losses.target_cut,
    "bare_target_loss": losses.bare_target_loss,
    "hidden_states": hidden.hidden_states,
    "example_hidden_states": hidden.example_hidden_states,
    "task_feature_activations": critical.task_feature_activations,
    "unrecalled_activations": critical.unrecalled_activations,
    "prior_cosines": critical.prior_cosines,
    "critical_reads": critical.critical_reads,
    **{name: getattr(critical, name) for name in sorted(critical.CONTROLS)},
    "sae_mean": tokens.sae_mean,
    "sae_max": tokens.sae_max,
    "neuron_mean": tokens.neuron_mean,
    "example_sae_mean": tokens.example_sae_mean,
    "example_neuron_mean": tokens.example_neuron_mean,
}

# What a model reads of a pool sample for a measurement, an attribute of `Samples`; for the others no model of the run
# reads it.
READS = {
    **dict.fromkeys(
        [
            *("critical_reads", "task_feature_activations", "unrecalled_activations", "prior_cosines"),
            *critical.CONTROLS,
        ],
        "prompts",
    ),
    **dict.fromkeys(["sae_mean", "sae_max", "neuron_mean"], "pairs"),
    **dict.fromkeys(
        ["target_loss", "target_cut", "bare_target_loss", "hidden_states", "gradients"], "training_pairs"
    ),
}

__all__ = ["MEASUREMENTS", "READS", "Measured", "Pool", "Samples"]
