"""Every repository of the box: (kind, id) -> what writes its files into a folder."""

from __future__ import annotations

from box.comet import COMET
from box.data import DATASETS
from box.models import MODELS
from box.saes import SAES

REPOSITORIES = {("models", name): write for name, write in {**MODELS, **SAES, **COMET}.items()}
REPOSITORIES |= {("datasets", name): write for name, write in DATASETS.items()}
