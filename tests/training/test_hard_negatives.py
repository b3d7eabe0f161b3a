"""Hard negatives looked for by the trainer: when, by which weights, and without a trace in the random numbers."""

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from cca_hf.data.hard_negatives import HardNegatives, find_hard_negatives
from cca_hf.training.trainer import CCATrainer


class Watch(TrainerCallback):
    """At the beginning of each epoch, after the mining: what was found, and what the weights of the moment find."""

    def __init__(self, data):
        self.data = data
        self.found = []
        self.expected = []
        self.random_state = []

    def on_epoch_begin(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        self.found.append(train_dataloader.batch_sampler.hard_negatives)
        labels = self.data.labels("train")
        self.expected.append(
            find_hard_negatives(
                model.encode(self.data["train"]["image"]),
                labels,
                np.arange(len(labels)),
                num_values=[len(values) for values in self.data.attributes.values()],
                most=64,
                epoch=round(state.epoch),
            )
        )


@pytest.mark.parametrize("kind", ["values", "images"])
def test_found_anew_before_each_epoch_but_the_first(make_model, make_args, shapes, kind):
    watch = Watch(shapes)
    trainer = CCATrainer(
        make_model(),
        make_args(hard_negatives=kind, num_train_epochs=3, eval_strategy="no", learning_rate=1e-3),
        shapes,
        callbacks=[watch],
    )
    trainer.callback_handler.callbacks.sort(key=lambda callback: callback is watch)  # after the mining
    trainer.train()
    assert watch.found[0] is None and len(watch.found) == 3
    for epoch in (1, 2):
        found, expected = watch.found[epoch], watch.expected[epoch]
        assert found.epoch == epoch
        assert (found.values is None) == (kind == "images") and (found.images is None) == (kind == "values")
        for one, other in zip(found.values or (), expected.values, strict=found.values is not None):
            np.testing.assert_allclose(one, other, atol=1e-5)
        for one, other in zip(found.images or (), expected.images, strict=found.images is not None):
            assert (one == other).mean() > 0.95  # two images as near as each other may have changed places
    before, after = watch.expected[1:]
    assert not np.allclose(before.values[0], after.values[0], atol=1e-3)  # the model has learned


def test_a_part_of_the_images_and_another_one_in_each_epoch(make_model, make_args, shapes):
    args = make_args(hard_negatives="images", hard_negatives_images=40)
    mining = CCATrainer(make_model(), args, shapes)._mining
    looked_at = []

    def embed(rows):
        looked_at.append(rows)
        return np.ones((len(rows), 5, 2), dtype=np.float32)

    mining.embed = embed
    before = torch.random.get_rng_state()
    for epoch in (1, 2, 1):
        mining._find(epoch)
    assert torch.random.get_rng_state().equal(before)
    assert all(len(set(rows.tolist())) == 40 for rows in looked_at)
    assert looked_at[0].tolist() == looked_at[2].tolist() != looked_at[1].tolist()


def test_looking_leaves_no_trace_in_the_random_numbers(make_model, make_args, shapes):
    trainer = CCATrainer(make_model(), make_args(hard_negatives="values"), shapes)
    before = torch.random.get_rng_state()
    assert isinstance(trainer._mining._find(1), HardNegatives)
    assert torch.random.get_rng_state().equal(before)


def test_ready_triplets_are_taken_as_they_are(make_model, make_args, shapes):
    with pytest.raises(ValueError, match="hard_negatives are for labelled pictures"):
        CCATrainer(make_model(), make_args(hard_negatives="values"), shapes, triplets=[None])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"hard_negatives_images": 1}, "hard_negatives_images must be at least 2, got 1")],
)
def test_refused(make_args, options, message):
    with pytest.raises(ValueError, match=message):
        make_args(**options)
