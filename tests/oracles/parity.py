"""What the scripts of this folder share. Each runs the authors' own program on a seeded input and
writes how far ours agrees into results/reference/parity.csv:

python tests/oracles/cherry_llm.py CHECKOUT    # a clone of theirs, or a folder that holds clones
"""

import io
import random
import runpy
import subprocess
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd

from igds_utils import tiny
from igds_utils.config.config import PROJECT
from igds_utils.tasks.examples import Example

TABLE = PROJECT / "results/reference/parity.csv"
LETTERS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "elu", "in", "ort", "ush")]


def checkout(repository: str) -> tuple[Path, str]:
    """Folder and commit of the clone that the command line names; without one, that is all."""
    given = [Path(one).resolve() for one in sys.argv[1:]]
    for folder in [*(one / repository.split("/")[1] for one in given), *given]:
        if (folder / ".git").exists():
            read = ["git", "-C", folder, "rev-parse", "HEAD"]
            return folder, subprocess.check_output(read, text=True).strip()
    sys.exit(f"{repository} is not compared: clone it, and name the folder")


def run(script: Path, *arguments) -> dict:
    """The names that a program leaves, called as from the command line."""
    sys.argv = [str(script), *map(str, arguments)]
    with quiet():
        return runpy.run_path(str(script), run_name="__main__")


@contextmanager
def quiet():
    """Drop what a program says."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def samples(n: int, longest: int = 20, seed: int = 0) -> list[Example]:
    """Samples of made-up words."""
    draw = random.Random(seed)
    text = lambda: " ".join(draw.choices(LETTERS, k=draw.randint(3, longest)))  # noqa: E731
    return [Example(f"s{i:03d}", {"instruction": text()}, text(), ()) for i in range(n)]


def save_tiny(folder: Path):
    """A tiny llama on disk, and its tokenizer, which here writes BOS by itself as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tiny.save_model("llama", 0, folder)
    tokenizer = tiny.tokenizer()
    known = [(tiny.BOS, tokenizer.bos_token_id)]
    start = TemplateProcessing(f"{tiny.BOS} $A", special_tokens=known)
    tokenizer.backend_tokenizer.post_processor = start
    tokenizer.save_pretrained(folder)
    return tokenizer


def record(program, repository, commit, quantity, compared: int, agree: int, largest=None):
    """One row of the table, in place of an earlier one of the same comparison."""
    difference = "" if largest is None else f"{largest:.1e}"
    row = pd.DataFrame([[program, repository, commit, quantity, compared, agree, difference]])
    row.columns = [*"program repository commit quantity compared agree largest_difference".split()]
    old = pd.read_csv(TABLE, dtype=str, keep_default_na=False) if TABLE.exists() else row[:0]
    other = (old["repository"] != repository) | (old["quantity"] != quantity)
    pd.concat([old[other], row]).sort_values(["repository", "quantity"]).to_csv(TABLE, index=False)
    print(f"{repository}: {quantity}: {agree} of {compared}, {difference}")
