"""Where a model or a file comes from, as presets write it down; `hub` and `lm` fetch what these records name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag


class Strict(BaseModel):
    """A record that refuses unknown keys and changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HubRef(Strict):
    """A Hugging Face repository, pinned to a revision."""

    hub: str
    revision: str = "main"


class FolderRef(Strict):
    """A folder on this machine; a relative path is read from the project's root."""

    folder: str


class WheelRef(Strict):
    """One file inside a pinned wheel of the Python package index."""

    wheel: str = Field(description="name of the package")
    version: str
    sha256: str = Field(description="of the wheel file")
    file: str = Field(description="path inside the wheel")


class TinyRef(Strict):
    """A tiny random model of a true architecture, made on the spot (tests and the smoke preset)."""

    tiny: Literal["llama", "gemma2", "qwen3"]
    seed: int = 0


KINDS = {"hub": HubRef, "folder": FolderRef, "wheel": WheelRef, "tiny": TinyRef}


def _kind_of_ref(value: Any) -> str | None:
    keys = value if isinstance(value, dict) else type(value).model_fields
    return next((kind for kind in KINDS if kind in keys), None)


Ref = Annotated[
    Annotated[HubRef, Tag("hub")]
    | Annotated[FolderRef, Tag("folder")]
    | Annotated[WheelRef, Tag("wheel")]
    | Annotated[TinyRef, Tag("tiny")],
    Discriminator(_kind_of_ref),
]
