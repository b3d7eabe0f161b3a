"""Results as JSON files."""

import json
from pathlib import Path


def write_json(content: dict, path: str | Path) -> Path:
    """Write `content` to `path`, whole or not at all; missing folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return path
