"""RDS+ beside automated-instruction-selection: its embeddings' cosines, and its round robin."""

import json
import pickle
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest.mock import MagicMock

import datasets
import numpy as np
from parity import checkout, record, run, samples, save_tiny
from transformers import AutoTokenizer

from igds_utils import tiny
from igds_utils.engine.lm import LM
from igds_utils.engine.prompts import encode_pairs
from igds_utils.selection.measurements import weighted_hidden_states
from igds_utils.selectors.similarity import rds

REPOSITORY, SIZE = "hamishivi/automated-instruction-selection", 60

folder, commit = checkout(REPOSITORY)
source = "compute_influence_cosinesim.py, get_top_influences.py", REPOSITORY, commit
sys.path.insert(0, str(folder))
# It opens data of the hub and a client of its API as it starts, for other uses than this one.
sys.modules["openai"] = sys.modules["openai.error"] = MagicMock()
load = datasets.load_dataset
datasets.load_dataset = lambda name, **own: load(name, **own) if name == "json" else MagicMock()
pool, examples = samples(150), samples(12, seed=1)
with TemporaryDirectory() as name:
    work = Path(name)
    tokenizer = save_tiny(work / "model")
    files = work / "pool.jsonl", work / "examples.jsonl"
    for file, members in zip(files, (pool, examples), strict=True):
        turns = [{"user": one.text, "assistant": one.target} for one in members]
        rows = [[{"role": role, "content": text} for role, text in one.items()] for one in turns]
        file.write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    own = ["--train_dataset", files[0], "--eval_dataset", files[1], "--model_name", work / "model"]
    own += ["--dtype", "fp32", "--save_dir", work, "--index_path", work / "index/all.pt"]
    run(folder / "minimal_multitask/compute_influence_cosinesim.py", *own)
    cosines = work / "examples.jsonl_cossim.pkl"
    # the pickle that the program above has just written, in a folder of this script
    of_examples = pickle.loads(cosines.read_bytes()).values()
    theirs = np.array([[*row.values()] for row in of_examples]).T  # (N, examples)
    AutoTokenizer.from_pretrained = MagicMock()  # of the hub, not used
    own = ["--input_files", cosines, "--train_datasets", files[0], "--selection_method", "max"]
    own += ["--output_size", SIZE, "--output_file", work / "chosen.json"]
    run(folder / "minimal_multitask/get_top_influences.py", *own)
    chosen = json.loads((work / "chosen.json").read_text())


def embedded(members) -> np.ndarray:
    """Ours, of the same text."""
    prompts = [f"<|user|>\n{one.text}\n<|assistant|>\n" for one in members]
    pairs = encode_pairs(tokenizer, prompts, [one.target for one in members])
    model = SimpleNamespace(train_lm=lm, preset=SimpleNamespace(batch_tokens=512))
    return weighted_hidden_states(SimpleNamespace(run=model, samples=members, training_pairs=pairs))


lm = LM(tiny.model("llama"), tokenizer, "tiny")
embeddings, of_examples = embedded(pool), embedded(examples)
off = np.abs(embeddings @ of_examples.T - theirs)
record(*source, "cosines", off.size, int((off < 1e-5).sum()), off.max())
order = rds(SimpleNamespace(ids=[one.id for one in pool]), SIZE, embeddings, of_examples).order
record(*source, "order", SIZE, int((order == np.array(chosen)).sum()))
