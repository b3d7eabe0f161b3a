"""Runs an example script of transformers without this package: `python run_example.py SCRIPT FLAG ...`.

The script is not changed. Without torchvision, it imports the transforms of `stand_in`. transformers and datasets must
not take these for torchvision, and so they look for it before the folder is on the path.
"""

import runpy
import sys
from pathlib import Path

import datasets  # noqa: F401
import transformers.trainer  # noqa: F401
from transformers.utils import is_torchvision_available

sys.modules["cca_hf"] = None  # type: ignore[assignment]  # importing it raises ImportError
if not is_torchvision_available():
    sys.path.insert(0, str(Path(__file__).parent / "stand_in"))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
