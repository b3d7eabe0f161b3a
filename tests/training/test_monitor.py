"""What the monitor makes of the loss, step by step."""

import pytest
import torch

from cca_hf.training.attribute_losses import name_figures
from cca_hf.training.checkpoints import TrainingFailedError
from cca_hf.training.losses import ConditionalLossOutput
from cca_hf.training.monitor import LossMonitor
from cca_hf.training.task import LossOutput


def output(losses, positive=0.5, negative=0.1) -> LossOutput:
    """The output for two attributes; None stands for an attribute without a triplet."""
    present = torch.tensor([loss is not None for loss in losses])
    attribute_loss = torch.tensor([loss or 0.0 for loss in losses])
    conditional = ConditionalLossOutput(
        loss=attribute_loss.sum() / present.sum().clamp(min=1),
        attribute_loss=attribute_loss,
        active_share=torch.where(present, 0.25, 0.0),
        positive_similarity=torch.where(present, positive, 0.0),
        negative_similarity=torch.where(present, negative, 0.0),
        has_triplets=present,
    )
    return name_figures(conditional, ["colour", "shape"])


def test_means_are_over_the_steps_in_which_an_attribute_had_triplets():
    monitor = LossMonitor()
    for losses in ([1.0, None], [2.0, 4.0], [6.0, None]):
        monitor.add(output(losses))
    logs = monitor.drain()
    assert logs["loss_colour"] == pytest.approx(3.0) and logs["loss_shape"] == pytest.approx(4.0)
    assert logs["active_shape"] == pytest.approx(0.25)
    assert logs["positive_similarity_colour"] == pytest.approx(0.5)
    assert logs["negative_similarity_shape"] == pytest.approx(0.1)
    assert monitor.drain() == {}
    monitor.add(output([5.0, None]))
    assert set(monitor.drain()) == {f"{name}_colour" for name in _NAMES}


_NAMES = ("loss", "active", "positive_similarity", "negative_similarity")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_named(bad):
    with pytest.raises(TrainingFailedError, match=rf"the loss is {bad} \(not finite: loss_shape\)"):
        LossMonitor().add(output([1.0, bad]))


def test_a_collapse_has_to_last():
    monitor = LossMonitor(collapse_patience=3)
    equal = output([0.2, 0.2], positive=1.0, negative=0.99999)
    learning = output([0.2, 0.2], positive=0.9999, negative=0.9991)  # near each other, but in order
    for step in (equal, equal, learning, equal, equal, output([None, None]), output([0.1, 0.1])):
        monitor.add(step)
    monitor.add(equal)
    monitor.add(equal)
    with pytest.raises(TrainingFailedError, match="collapsed: for 3 steps"):
        monitor.add(equal)
