"""IFD beside Cherry_LLM: both of its programs on a tiny Llama, in its prompt of Alpaca."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import torch
from parity import checkout, record, run, samples, save_tiny
from transformers import AutoTokenizer, LlamaTokenizer

from igds_utils import tiny
from igds_utils.engine.lm import LM
from igds_utils.engine.losses import target_losses
from igds_utils.engine.prompts import encode, encode_pairs
from igds_utils.selectors.scores import ifd

REPOSITORY, CHOSEN = "tianyi-lab/Cherry_LLM", 20
HEADER = "### Response:"

folder, commit = checkout(REPOSITORY)
source = "data_analysis.py, data_by_IFD.py", REPOSITORY, commit
members = samples(80)
with TemporaryDirectory() as name:
    work = Path(name)
    tokenizer = save_tiny(work / "model")
    keys = {"instruction": "", "input": "", "output": ""}
    rows = [keys | {"instruction": one.text, "output": one.target} for one in members]
    (work / "data.json").write_text(json.dumps(rows))
    # the tiny tokenizer has no file of sentencepiece
    LlamaTokenizer.from_pretrained = AutoTokenizer.from_pretrained
    common = ["--model_name_or_path", work / "model", "--prompt", "alpaca", "--max_length", 512]
    data, losses, chosen = work / "data.json", work / "losses.pt", work / "chosen.json"
    own = ["--data_path", data, "--save_path", losses, "--mod", "cherry"]
    theirs = run(folder / "cherry_seletion/data_analysis.py", *common, *own)
    own = ["--pt_data_path", losses, "--json_data_path", data, "--json_save_path", chosen]
    run(folder / "cherry_seletion/data_by_IFD.py", *common, *own, "--sample_number", CHOSEN)
    perplexities = [one["ppl"][1:] for one in torch.load(losses)]
    bare, conditioned = np.log(np.array(perplexities, dtype=float)).T
    of_theirs = {row["instruction"] for row in json.loads(chosen.read_text())}

lm = LM(tiny.model("llama"), tokenizer, "tiny")
template = theirs["PROMPT_DICT"]["prompt_no_input"]
prompts = [template.format(instruction=one.text) for one in members]
pairs = encode_pairs(tokenizer, prompts, [one.target for one in members], eos=False)
start = encode(tokenizer, HEADER)
alone = [(start + ids[n_prompt:], len(start)) for ids, n_prompt in pairs]
pool = SimpleNamespace(samples=members, ids=[one.id for one in members])
cut = np.zeros(len(members), dtype=bool)
found = ifd(pool, CHOSEN, target_losses(lm, pairs), target_losses(lm, alone), cut)

difference = np.abs(found.scores - conditioned / bare)
record(*source, "IFD", len(members), int((difference < 1e-5).sum()), difference.max())
of_ours = {members[i].text for i in found.order}
record(*source, "samples chosen", CHOSEN, len(of_theirs & of_ours))
