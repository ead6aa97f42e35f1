"""Builders that turn results into display frames, and one writer for CSV, Markdown and LaTeX.

Builders do no input or output. Every cell is text, ready to be read; the numbers themselves stay in the run's JSON
and parquet files. The paper's values come from `display.paper_values()` and always stand under the word "paper".
"""

from igds_utils.tables.arms import (
    activation_table,
    benefit_table,
    selection_table,
    table2,
    table3,
    table4,
    table7,
    table8,
)
from igds_utils.tables.features import (
    MARK,
    PAPER_SOURCES,
    agreement_table,
    model_facts,
    prompt_templates,
    table1,
    table5,
    table6,
    table9,
)
from igds_utils.tables.writing import load_table, save_table, to_latex, to_markdown

__all__ = [
    "MARK", "PAPER_SOURCES", "activation_table", "agreement_table", "benefit_table", "load_table",
    "model_facts", "prompt_templates", "save_table", "selection_table", "table1", "table2", "table3",
    "table4", "table5", "table6", "table7", "table8", "table9", "to_latex", "to_markdown",
]  # fmt: skip
