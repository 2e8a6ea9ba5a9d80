"""What the tasks of all jobs must know, in one small file that travels with them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mr.review import Fields
from native.text import TextSettings


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a run."""

    text: TextSettings
    split: dict[str, float]
    """percent of the texts per split"""
    vocab_size: int
    """words"""
    fields: Fields = field(default_factory=Fields)
    bounds: tuple[int, ...] = ()
    """padded length per bucket, in tokens; known after the count job"""
    item_bytes: int = 2
    """2 or 4: bytes of a token id"""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**self.__dict__, "text": self.text.to_json(), "fields": asdict(self.fields)}

    def write(self, path: Path) -> Path:
        """Write the settings to a file; returns its path."""
        path.write_text(json.dumps(self.to_json()))
        return path

    @classmethod
    def read(cls, path: Path) -> Settings:
        """The reverse of write."""
        value = json.loads(path.read_text())
        value["text"] = TextSettings.from_json(value["text"])
        value["fields"] = Fields(**{name: tuple(fields) for name, fields in value["fields"].items()})
        return cls(**{**value, "bounds": tuple(value["bounds"])})
