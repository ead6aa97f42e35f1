"""The paper's tables: builders that turn results into display frames, and one writer for CSV, Markdown and LaTeX.

Builders do no input or output. Every cell is text, ready to be read; the numbers themselves stay in the run's JSON
and parquet files. The paper's values come from `display.paper_values()` and always stand under the word "paper".
"""

from igds_utils.tables.distributions import activation_table
from igds_utils.tables.outputs import table7, table8
from igds_utils.tables.paper import MARK, table1, table2, table6, table9
from igds_utils.tables.robustness import ablation_table, benefit_table, table3, table4
from igds_utils.tables.selection import selection_table
from igds_utils.tables.stability import PAPER_SOURCES, agreement_table, table5, top1_table
from igds_utils.tables.writing import load_table, save_table, to_latex, to_markdown

__all__ = [
    "MARK",
    "PAPER_SOURCES",
    "ablation_table",
    "activation_table",
    "agreement_table",
    "benefit_table",
    "load_table",
    "save_table",
    "selection_table",
    "table1",
    "table2",
    "table3",
    "table4",
    "table5",
    "table6",
    "table7",
    "table8",
    "table9",
    "to_latex",
    "to_markdown",
    "top1_table",
]
