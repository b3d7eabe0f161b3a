"""The runs of a comparison: several processes share them, and no finished run is repeated.

A run is a method with a seed. Its figures are in FOLDER/runs/<method>-seed<seed>.json, beside the settings of the
comparison. The scripts benchmark_quality.py, benchmark_manipulation.py and benchmark_classification.py use it.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cca_hf.models.whole_files import write_json


class TrainingRuns:
    """The runs in a folder.

    Args:
        settings: flags that all runs share; a run with other settings is refused.
    """

    def __init__(self, folder: Path, settings: Sequence[str]) -> None:
        self.folder = folder
        self.settings = list(settings)

    def path(self, method: str, seed: int) -> Path:
        return self.folder / "runs" / f"{method}-seed{seed}.json"

    def run(self, method: str, seed: int, measure: Callable[[], dict[str, Any]]) -> None:
        """Stores what `measure` returns, unless the run is finished or another process works on it."""
        path = self.path(method, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(path.with_suffix(".lock"), timeout=0):
                if not path.exists():
                    print(f"\n{method}, seed {seed}", flush=True)
                    write_json(measure() | {"method": method, "seed": seed, "settings": self.settings}, path)
        except Timeout:
            print(f"{method}, seed {seed}: another process works on this run", flush=True)

    def load(self, method: str, seed: int) -> dict[str, Any] | None:
        """The figures of a run; None if it is not finished.

        Raises:
            ValueError: if the run had other settings.
        """
        path = self.path(method, seed)
        if not path.exists():
            return None
        run = json.loads(path.read_text())
        if run["settings"] != self.settings:
            raise ValueError(
                f"{path} was made with the settings {' '.join(run['settings'])}; "
                f"this run has {' '.join(self.settings)}. Give another --output"
            )
        return run


def mean_and_std(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of each figure that all runs have."""
    return {
        name: {
            "mean": statistics.mean(run[name] for run in runs),
            "std": statistics.stdev(run[name] for run in runs) if len(runs) > 1 else 0.0,
        }
        for name in runs[0]
        if all(name in run for run in runs)
    }
