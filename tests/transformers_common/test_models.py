"""transformers' own common tests for CCA, CSN, ASEN and DCAL: `make transformers-tests`.

Tests that fail or are skipped are listed with the reason in `exceptions.py`. The list is checked: see `conftest.py`.
"""

import copy
import unittest
from typing import Any, ClassVar

import pytest
import torch
from transformers import MobileNetV2Config, PreTrainedConfig, PreTrainedModel, ViTConfig

from cca_hf import CCAModel
from cca_hf.models.modeling_asen import ASENModel
from cca_hf.models.modeling_csn import CSNModel
from cca_hf.models.modeling_dcal import DCALConfig, DCALModel

from .archive import NoArchiveError, common_tests

try:
    common = common_tests()
except NoArchiveError as error:
    pytest.skip(str(error), allow_module_level=True)

ATTRIBUTES = ["colour", "shape", "heel height"]


class ModelTester:
    """Makes a tiny configuration and the inputs that fit it, as the common tests ask for them."""

    batch_size = 3
    is_training = True
    num_hidden_layers = 2
    num_attention_heads = 2
    hidden_size = 16

    def __init__(
        self,
        model_class: type[PreTrainedModel],
        backbone: PreTrainedConfig,
        seq_length: int,  # of the image tokens
        hidden_states: int,  # how many the backbone returns
    ):
        self.model_class = model_class
        self.backbone = backbone
        self.seq_length = seq_length
        self.expected_num_hidden_layers = hidden_states

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, Any]]:
        model = self.model_class.from_backbone(copy.deepcopy(self.backbone), ATTRIBUTES)
        side = self.backbone.image_size
        config = type(model.config).from_dict(model.config.to_dict())  # without the attention that a model chose
        inputs = {
            "pixel_values": torch.rand(self.batch_size, 3, side, side),
            "attribute_ids": torch.arange(self.batch_size) % len(ATTRIBUTES),
        }
        return config, inputs


def vit() -> ViTConfig:
    return ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=4
    )


class WithLoss:
    """The adapter for the tests of training: these models compute no loss, because the Trainer's task does."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        output["loss"] = output.embeddings[..., 0].sum()
        return output


class WithTuple:
    """The adapter for a test of the gradient of `attentions[0]`: ours is one tensor, of one layer."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        output["attentions"] = (output.attentions,)
        return output


ADAPTERS = {
    "test_training": WithLoss,
    "test_retain_grad": WithTuple,
}


class CommonTests(common.ModelTesterMixin):
    """What the classes below share."""

    model_class: ClassVar[type[PreTrainedModel]]
    adapters: ClassVar[dict[str, type]] = ADAPTERS
    test_resize_embeddings = False  # there are no words
    test_can_init_all_missing_weights_before_2023 = True  # our files have no copyright year

    def setUp(self) -> None:
        model_class: type = self.model_class
        for start, adapter in self.adapters.items():
            if self._testMethodName.startswith(start):
                model_class = type(model_class.__name__ + adapter.__name__, (adapter, model_class), {})
        self.all_model_classes = (model_class,)
        self.model_tester = self.make_tester()

    def make_tester(self) -> ModelTester:
        # the conditional layer replaces the second one of the ViT, or is added on top of a backbone without attention
        return ModelTester(self.model_class, vit(), seq_length=17, hidden_states=2 + (self.model_class is ASENModel))


class TestCCAOnViT(CommonTests, unittest.TestCase):
    model_class = CCAModel


class TestCCAOnMobileNetV2(CommonTests, unittest.TestCase):
    model_class = CCAModel

    def make_tester(self) -> ModelTester:
        backbone = MobileNetV2Config(depth_multiplier=0.1, min_depth=4, image_size=32, last_hidden_size=32)
        return ModelTester(CCAModel, backbone, seq_length=1, hidden_states=16)


class TestCSN(CommonTests, unittest.TestCase):
    model_class = CSNModel


class TestASEN(CommonTests, unittest.TestCase):
    model_class = ASENModel


class DCALTester(ModelTester):
    """DCAL has no attributes, and its configuration contains that of the backbone."""

    def __init__(self) -> None:
        super().__init__(DCALModel, vit(), seq_length=17, hidden_states=3)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, Any]]:
        config = DCALConfig(backbone_config=copy.deepcopy(self.backbone))
        side = self.backbone.image_size
        return config, {"pixel_values": torch.rand(self.batch_size, 3, side, side)}


class WithPooledLoss:
    """As `WithLoss`, for a model with one embedding of an image."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        output["loss"] = output.pooler_output.sum()
        return output


class TestDCAL(CommonTests, unittest.TestCase):
    model_class = DCALModel
    adapters: ClassVar[dict[str, type]] = {"test_training": WithPooledLoss}

    def make_tester(self) -> ModelTester:
        return DCALTester()
