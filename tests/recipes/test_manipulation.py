"""`cca train manipulate`: three stages, what they write, and how they continue after an interruption."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, ViTConfig

from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.schema import AttributeDataset
from cca_hf.data.shapes import generate_shapes_dataset
from cca_hf.evaluation.manipulation import ManipulationEvaluator
from cca_hf.evaluation.manipulation_result import ManipulationResult
from cca_hf.evaluation.results import load_result
from cca_hf.models.modeling_adde import ADDEModel
from cca_hf.recipes.attribute_manipulation import run_training
from cca_hf.recipes.command_line import DataArguments, ModelArguments
from cca_hf.recipes.manipulation_trainer import ADDETrainer, ManipulationArguments

from ..pages import run_cca
