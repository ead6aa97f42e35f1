"""The paper's tables: builders that turn results into display frames, and one writer for CSV, Markdown and LaTeX.

Builders do no input or output. Every cell is text, ready to be read; the numbers themselves stay in the run's JSON
and parquet files. The paper's values come from `display.paper_values()` and always stand under the word "paper".
"""

from igds_utils.tables.paper import MARK, table1, table2, table6, table9
from igds_utils.tables.writing import save_table, to_latex, to_markdown

__all__ = ["MARK", "save_table", "table1", "table2", "table6", "table9", "to_latex", "to_markdown"]
