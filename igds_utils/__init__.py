"""IGDS, interpretability-guided data selection (arXiv 2604.25167), reproduced with open tools.

The notebooks are the chapters; this package keeps the code that they share. Data flows one way through it:
config -> hub -> (lm, sae, tasks) -> activations -> recall -> intervention -> selectors -> sft -> evaluation
-> stats -> summaries -> tables and plots.
"""

import warnings

# Libraries probe for Jupyter's bar widgets when imported in a notebook; our bars are plain text, so none are needed.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.2.0"
