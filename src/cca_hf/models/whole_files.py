"""Results as files that are there whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(content: Mapping[str, Any], path: str | Path) -> Path:
    """Write `content` to `path`, whole or not at all; missing folders are made."""
    return write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", path)


def write_text(content: str, path: str | Path) -> Path:
    """As [`write_json`]."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(content, encoding="utf-8")
    unfinished.replace(path)
    return path
