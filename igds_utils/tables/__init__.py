"""Builders that turn results into display frames, which `reporting.report` writes and shows.

Builders do no input or output. Every cell is text, ready to be read; the numbers themselves stay in the run's JSON
and parquet files. The paper's values come from `display.paper_values()` and always stand under the word "paper".
"""
# ruff: noqa: F401, I001

from igds_utils.tables.arms import activation_table, benefit_table, selection_table
from igds_utils.tables.arms import table2, table3, table4, table7, table8
from igds_utils.tables.features import MARK, agreement_table, model_facts, prompt_templates
from igds_utils.tables.features import table1, table5, table6, table9
