"""CCATrainer: what it learns from, what it logs, how it evaluates, and when it stops."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, DatasetDict, List
from safetensors.torch import load_file
from transformers import TrainerCallback

from cca_hf.data.shifts import leave_values_out
from cca_hf.data.torch_dataset import QueriesAndGallery
from cca_hf.evaluation.retrieval.embeddings import Gallery, evaluate_embeddings
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.recipes.attribute_trainer import CCATrainer
from cca_hf.training.checkpoints import TrainingFailedError, last_checkpoint
from cca_hf.training.losses import ConditionalSoftTripletLoss, ConditionalTripletLoss, explicit_triplet_loss

from .conftest import EPOCH


@pytest.fixture
def make_trainer(make_model, make_args, shapes):
    def make(data=shapes, model=None, callbacks=None, triplets=None, **changes) -> CCATrainer:
        model = make_model() if model is None else model
        return CCATrainer(model, make_args(**changes), data, callbacks=callbacks, triplets=triplets)

    return make


def training_logs(trainer: CCATrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_it_learns_and_logs_every_attribute(make_trainer, shapes):
    trainer = make_trainer(num_train_epochs=6, head_learning_rate=3e-3, collapse_patience=0)
    outcome = trainer.train()
    logs = training_logs(trainer)
    assert len(logs) == outcome.global_step == 6 * EPOCH
    for attribute in shapes.attributes:
        for name in ("loss", "active", "positive_similarity", "negative_similarity"):
            assert all(np.isfinite(entry[f"{name}_{attribute}"]) for entry in logs)
    first, last = (np.mean([entry["loss"] for entry in epoch]) for epoch in (logs[:EPOCH], logs[-EPOCH:]))
    assert last < 0.98 * first
    means = [np.mean([entry[f"loss_{attribute}"] for attribute in shapes.attributes]) for entry in logs]
    assert [entry["loss"] for entry in logs] == pytest.approx(means, rel=1e-3)

    evaluations = [entry for entry in trainer.state.log_history if "eval_map" in entry]
    assert len(evaluations) == 6
    best = max(evaluations, key=lambda entry: entry["eval_map"])
    assert best["eval_map"] > best["eval_chance_map"] > 0
    assert trainer.state.best_metric == best["eval_map"]


def test_the_evaluation_is_that_of_the_models_own_encode(make_trainer, shapes):
    trainer = make_trainer()
    metrics = trainer.evaluate()
    embeddings = trainer.model.encode(shapes["validation"]["image"])
    expected = evaluate_embeddings(embeddings, shapes.labels("validation"), shapes.attributes).metrics()
    assert {name: metrics[f"eval_{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert trainer.evaluation_result.metrics() == pytest.approx(expected, abs=1e-6)
    predicted = trainer.predict(trainer.images_of("test"), metric_key_prefix="test")
    assert predicted.predictions.shape == (45, 5, 32)
    assert "test_map_colour" in predicted.metrics and "test_chance_map" in predicted.metrics


def test_groups_and_galleries_are_evaluated_as_such(make_trainer, make_model, shapes):
    splits = DatasetDict(shapes.splits)
    validation = splits.pop("validation")
    splits["validation_query"] = validation.select(range(6))
    splits["validation_gallery"] = validation.select(range(6, 16))
    for split in list(splits):  # pairs of near copies: row 2k and 2k + 1
        groups = [row // 2 for row in range(splits[split].num_rows)]
        splits[split] = splits[split].add_column("item", groups)
    data = replace(shapes, splits=splits, group_column="item")
    trainer = make_trainer(data)
    assert isinstance(trainer.eval_dataset, QueriesAndGallery)
    metrics = trainer.evaluate()
    query, gallery = (trainer.model.encode(splits[f"validation_{part}"]["image"]) for part in ("query", "gallery"))
    expected = evaluate_embeddings(
        query,
        data.labels("validation_query"),
        data.attributes,
        groups=data.groups("validation_query"),
        gallery=Gallery(gallery, data.labels("validation_gallery"), data.groups("validation_gallery")),
    ).metrics()
    assert {name: metrics[f"eval_{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)

    grouped = trainer.predict(trainer.images_of("test"), metric_key_prefix="test").metrics
    without = evaluate_embeddings(
        trainer.model.encode(splits["test"]["image"]),
        data.labels("test"),
        data.attributes,
        groups=data.groups("test"),
    ).metrics()
    assert grouped["test_map"] == pytest.approx(without["map"], abs=1e-6)


def test_sets_of_values_are_evaluated_beside_the_protocol(make_trainer, shapes):
    splits = DatasetDict(shapes.splits)
    names = shapes.attributes["colour"]
    for split in ("validation", "test"):
        lists = [[row % 2] for row in range(splits[split].num_rows)]
        splits[split] = splits[split].add_column("colour_maybe", lists, feature=List(ClassLabel(names=names)))
    data = replace(shapes, splits=splits)
    trainer = make_trainer(data)
    metrics = trainer.evaluate()
    maybe = data.value_sets("validation", "maybe")
    assert maybe["colour"].sum() == splits["validation"].num_rows
    embeddings = trainer.model.encode(splits["validation"]["image"])
    expected = evaluate_embeddings(
        embeddings, data.labels("validation"), data.attributes, maybe_values=maybe
    ).metrics()
    assert {name: metrics[f"eval_{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert metrics["eval_chance_map_ignore_maybe"] > metrics["eval_chance_map"]


def test_the_run_ends_with_the_weights_of_the_best_checkpoint(make_trainer, tmp_path):
    """All of them: the Trainer alone would leave out the backbone of a ViT, whose names in the file are older ones."""
    rates = {"learning_rate": 3e-3, "head_learning_rate": 3e-3}
    # the worst map counts as the best here, so that it is not the last one
    trainer = make_trainer(
        num_train_epochs=3, greater_is_better=False, save_total_limit=None, proxy_weight=0.0, **rates
    )
    trainer.train()
    assert trainer.state.best_global_step < 3 * EPOCH
    last = CCAModel.from_pretrained(tmp_path / "out" / f"checkpoint-{3 * EPOCH}").state_dict()
    best = CCAModel.from_pretrained(trainer.state.best_model_checkpoint).state_dict()
    for name, weight in trainer.model.set_prototypes(None).state_dict().items():
        assert weight.equal(best[name]), name
        assert weight.ndim < 2 or not weight.equal(last[name]), name


def test_backbone_and_head_learn_at_rates_of_their_own(make_trainer):
    trainer = make_trainer(learning_rate=1e-5, head_learning_rate=1e-3, weight_decay=0.1)
    optimizer = trainer.create_optimizer()
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    seen = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            seen.add(name)
            assert group["lr"] == (1e-5 if name.startswith("backbone.") else 1e-3), name
            plain = name.endswith("bias") or "norm" in name or name.startswith("condition_embedding")
            assert group["weight_decay"] == (0.0 if plain else 0.1), name
    assert seen == set(names.values())
    assert trainer.create_optimizer() is optimizer


def test_batch_norm_does_not_decay_whatever_its_name():
    from cca_hf.training.parameters import undecayed_parameters

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.GroupNorm(2, 4))
    assert undecayed_parameters(model) == {"0.bias", "1.weight", "1.bias", "2.weight", "2.bias"}


def test_default_learning_rate_depends_on_whether_the_backbone_is_pretrained(
    make_trainer, make_model, tmp_path, shapes
):
    assert make_trainer(head_learning_rate=7e-4).args.learning_rate == 7e-4
    make_model().backbone.config.num_hidden_layers = 2
    from transformers import ViTConfig, ViTModel

    ViTModel(
        ViTConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=64, image_size=32)
    ).save_pretrained(tmp_path / "vit")
    pretrained = CCAModel.from_backbone(tmp_path / "vit", shapes.attributes)
    assert make_trainer(model=pretrained).args.learning_rate == 1e-4


def test_a_frozen_backbone_stays_as_it_is(make_trainer):
    trainer = make_trainer(freeze_backbone=True, max_steps=2, eval_strategy="no", save_strategy="no")
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.set_prototypes(None).state_dict()
    moved = {name for name, weight in after.items() if not weight.equal(before[name])}
    assert moved and not any(name.startswith("backbone.") for name in moved)
    assert all(group["lr"] <= trainer.args.head_learning_rate for group in trainer.optimizer.param_groups)


def batches_of(trainer: CCATrainer, epoch: int) -> list[dict[str, torch.Tensor]]:
    loader = trainer.get_train_dataloader()
    loader.set_epoch(epoch)
    return list(loader)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_batch_is_a_function_of_seed_epoch_and_step(make_trainer):
    plain, workers = batches_of(make_trainer(), 3), batches_of(make_trainer(dataloader_num_workers=2), 3)
    for one, other in zip(plain, workers, strict=True):
        assert one["pixel_values"].equal(other["pixel_values"]) and one["labels"].equal(other["labels"])
    for changed in (batches_of(make_trainer(), 4), batches_of(make_trainer(seed=1), 3)):
        assert not plain[0]["pixel_values"].equal(changed[0]["pixel_values"])


def test_accumulated_batches_count_as_their_mean(make_trainer):
    trainer = make_trainer(
        gradient_accumulation_steps=2,
        max_steps=1,
        eval_strategy="no",
        save_strategy="no",
        max_grad_norm=0,
    )
    first, second = batches_of(trainer, 0)[:2]
    model = trainer.model.train()
    losses = [trainer.compute_loss(model, dict(batch)) for batch in (first, second)]
    trainer.monitor.drain()
    mean = (losses[0] + losses[1]) / 2
    expected = torch.autograd.grad(mean, list(model.parameters()), allow_unused=True)

    gradients = {}

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            gradients.update({name: p.grad.clone() for name, p in model.named_parameters()})

    trainer.add_callback(Look())
    trainer.train()
    for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(gradients[name], gradient, atol=1e-7, rtol=1e-4, msg=name)
    assert training_logs(trainer)[0]["loss"] == pytest.approx(mean.item(), rel=1e-5)


def test_the_loss_follows_the_arguments(make_trainer):
    objective = make_trainer(temperature=0.3, margin=0.1).loss
    soft = objective.criterion
    assert isinstance(soft, ConditionalSoftTripletLoss) and (soft.temperature, soft.margin) == (0.3, 0.1)
    assert objective.proxies.temperature == 0.3 and objective.proxy_weight == 1
    objective = make_trainer(loss="triplet", mining="hardest", margin=0.5, proxy_weight=0.0).loss
    triplet = objective.criterion
    assert isinstance(triplet, ConditionalTripletLoss) and (triplet.mining, triplet.margin) == ("hardest", 0.5)
    assert objective.proxies is None


def test_both_losses_add_up(make_trainer):
    trainers = [make_trainer(proxy_weight=weight) for weight in (0.0, 1.0, 2.5)]
    batch = batches_of(trainers[0], 0)[0]
    with torch.no_grad():
        losses = [trainer.compute_loss(trainer.model.eval(), dict(batch)).item() for trainer in trainers]
    assert losses[1] > losses[0] > 0
    assert losses[2] - losses[0] == pytest.approx(2.5 * (losses[1] - losses[0]), rel=1e-4)


def test_bf16_trains(make_trainer):
    trainer = make_trainer(bf16=True, max_steps=2)
    trainer.train()
    assert all(np.isfinite(entry["loss"]) for entry in training_logs(trainer))
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}


class ReadyTriplets(torch.utils.data.Dataset):
    """Random pictures under random conditions."""

    def __init__(self, length: int = 24) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(length, 3, 3, 32, 32, generator=generator)
        self.condition = torch.arange(length) % 5

    def __len__(self) -> int:
        return len(self.condition)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        anchor, positive, negative = self.images[row]
        return {"anchor": anchor, "positive": positive, "negative": negative, "condition": self.condition[row]}


def test_ready_triplets_are_trained_on_under_their_conditions(make_trainer, shapes):
    trainer = make_trainer(triplets=ReadyTriplets(), per_device_train_batch_size=8, num_train_epochs=2)
    batch = next(iter(trainer.get_train_dataloader()))
    embeddings = {
        name: trainer.model(batch[name], attribute_ids=batch["condition"]).embeddings
        for name in ("anchor", "positive", "negative")
    }
    expected = explicit_triplet_loss(**embeddings, margin=0.2).loss
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), expected)
    trainer.monitor.drain()

    trainer.train()
    logs = training_logs(trainer)
    assert len(logs) == 6 and "loss_colour" in logs[0]
    assert sum(e["loss"] for e in logs[3:]) < sum(e["loss"] for e in logs[:3])
    assert any("eval_map" in entry for entry in trainer.state.log_history)


class Spoil(TrainerCallback):
    """Does something to the model at a step."""

    def __init__(self, step: int, what) -> None:
        self.step = step
        self.what = what

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                self.what(model)


def put_nan(model: CCAModel) -> None:
    next(model.conditional_layer.parameters())[0] = torch.nan


@pytest.mark.parametrize("step", [EPOCH + 3, 2 * EPOCH], ids=["within an epoch", "just before an evaluation"])
def test_nan_stops_before_anything_is_saved_over_a_good_checkpoint(make_trainer, tmp_path, step):
    trainer = make_trainer(num_train_epochs=3, callbacks=[Spoil(step, put_nan)])
    with pytest.raises(TrainingFailedError, match=rf"step (13|20).*checkpoint-{EPOCH}\."):
        trainer.train()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"checkpoint-{EPOCH}"]
    good = CCAModel.from_pretrained(tmp_path / "out" / f"checkpoint-{EPOCH}")
    assert all(torch.isfinite(weight).all() for weight in good.parameters())


def test_nan_weights_are_never_saved(make_trainer, tmp_path):
    """Without an evaluation that would notice, and after training."""
    trainer = make_trainer(num_train_epochs=2, eval_strategy="no", callbacks=[Spoil(2 * EPOCH, put_nan)])
    with pytest.raises(TrainingFailedError, match="weights of conditional_layer"):
        trainer.train()
    assert last_checkpoint(tmp_path / "out").name == f"checkpoint-{EPOCH}"
    with pytest.raises(TrainingFailedError, match="weights of conditional_layer"):
        trainer.save_model(str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def collapse(model: CCAModel) -> None:
    for parameter in model.conditional_layer.parameters():
        parameter.zero_()


def test_collapsed_embeddings_stop_the_run(make_trainer, make_model, tmp_path):
    settings = {"learning_rate": 0.0, "head_learning_rate": 0.0, "num_train_epochs": 3}
    model = make_model(residual="condition")  # without the layer's weights, the embedding is the condition alone
    trainer = make_trainer(model=model, callbacks=[Spoil(EPOCH + 1, collapse)], collapse_patience=4, **settings)
    with pytest.raises(TrainingFailedError, match=rf"step 14: .*collapsed.*4 steps.*checkpoint-{EPOCH}\."):
        trainer.train()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"checkpoint-{EPOCH}"]
    trainer = make_trainer(
        model=make_model(residual="condition"), callbacks=[Spoil(1, collapse)], collapse_patience=0, **settings
    )
    assert trainer.train().global_step == 3 * EPOCH


def test_early_stopping_on_retrieval(make_trainer):
    trainer = make_trainer(
        num_train_epochs=9, learning_rate=0.0, head_learning_rate=0.0, collapse_patience=0, early_stopping_patience=2
    )
    assert trainer.train().global_step == 3 * EPOCH  # one evaluation to set the mark, two that are no better


def test_resuming_needs_a_checkpoint_of_the_same_attributes(make_trainer, make_model, shapes, tmp_path):
    trainer = make_trainer()
    with pytest.raises(ValueError, match="no complete checkpoint in .*out"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="is not a checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path))
    trainer.train()
    fewer = replace(shapes, attributes={name: shapes.attributes[name] for name in ("shape", "colour")})
    model = CCAModel.from_backbone(make_model().backbone.config, fewer.attributes)
    with pytest.raises(ValueError, match=r"\['colour', 'shape', .*\['shape', 'colour'\]"):
        make_trainer(fewer, model=model).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"the model has the attributes \['shape', 'colour'\], the data \['colour'"):
        make_trainer(model=model)


def test_a_data_set_without_validation_has_to_say_so(make_trainer, shapes):
    data = replace(shapes, splits=DatasetDict({"train": shapes["train"], "test": shapes["test"]}))
    with pytest.raises(KeyError, match="validation"):
        make_trainer(data)
    trainer = make_trainer(data, eval_strategy="no", max_steps=2)
    trainer.train()
    assert last_checkpoint(trainer.args.output_dir) is not None


def test_a_folder_that_only_looks_like_a_checkpoint_is_passed_over(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    half = tmp_path / "out" / "checkpoint-99"
    half.mkdir()
    (half / "optimizer.pt").write_bytes(b"half of it")
    assert last_checkpoint(tmp_path / "out") == tmp_path / "out" / f"checkpoint-{EPOCH}"
    assert make_trainer(num_train_epochs=2).train(resume_from_checkpoint=True).global_step == 2 * EPOCH


def test_checkpoints_load_anywhere(make_trainer, tmp_path):
    make_trainer().train()
    files = {path.name for path in (tmp_path / "out" / f"checkpoint-{EPOCH}").iterdir()}
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "modeling_cca.py", "optimizer.pt"} <= files
    weights = load_file(tmp_path / "out" / f"checkpoint-{EPOCH}" / "model.safetensors")
    assert all(weight.is_contiguous() for weight in weights.values())


def test_drop_last_leaves_no_image_out_of_an_evaluation(make_trainer):
    settings = {"dataloader_drop_last": True, "per_device_eval_batch_size": 9}  # of 22 images
    expected = make_trainer(per_device_eval_batch_size=9).evaluate()
    trainer = make_trainer(**settings)
    assert trainer.evaluate()["eval_map"] == expected["eval_map"]
    assert trainer.evaluation_result["colour"].queries == 22
    assert trainer.predict(trainer.images_of("test")).predictions.shape[0] == 45
    large = make_trainer(dataloader_drop_last=True, per_device_eval_batch_size=64)
    assert large.evaluate()["eval_map"] == pytest.approx(expected["eval_map"], abs=1e-6)


def test_drop_last_is_about_the_batches_of_the_training(make_trainer):
    settings = {"triplets": ReadyTriplets(), "per_device_train_batch_size": 10}
    assert [len(batch["condition"]) for batch in make_trainer(**settings).get_train_dataloader()] == [10, 10, 4]
    dropped = make_trainer(dataloader_drop_last=True, **settings).get_train_dataloader()
    assert [len(batch["condition"]) for batch in dropped] == [10, 10]
    too_large = make_trainer(triplets=ReadyTriplets(), dataloader_drop_last=True, per_device_train_batch_size=32)
    with pytest.raises(ValueError, match="leaves no batch: 24 examples are fewer than a batch of 32"):
        too_large.train()


def test_the_metric_of_the_best_checkpoint_must_exist(make_trainer, make_model, make_args, shapes):
    with pytest.raises(ValueError, match=r"'mapp' is not a metric .*Did you mean 'map'.* map, map_weighted"):
        make_trainer(metric_for_best_model="mapp")
    with pytest.raises(ValueError, match="'nonsense' is not a metric"):
        make_trainer(metric_for_best_model="nonsense", load_best_model_at_end=False)
    for name in ("eval_loss", "loss", None):
        assert make_trainer(metric_for_best_model=name).args.metric_for_best_model == "map"
    for name in ("eval_map_colour", "recall@1_size", "chance_map", "map_weighted"):
        make_trainer(metric_for_best_model=name)
    both = {"easy": "validation", "hard": "test"}
    with pytest.raises(ValueError, match=r"'map' is not a metric .* easy_map, .*hard_map"):
        CCATrainer(make_model(), make_args(), shapes, eval_dataset=both)
    CCATrainer(make_model(), make_args(metric_for_best_model="hard_map"), shapes, eval_dataset=both)


def test_the_names_of_the_metrics_are_those_of_the_evaluation(make_trainer, shapes):
    """With an attribute that no image of the split has, sets of values, and queries against a gallery."""
    splits = DatasetDict(shapes.splits)
    names = shapes.attributes["colour"]
    validation = splits["validation"]
    labelled = validation.features["shape"]
    validation = validation.remove_columns("shape").add_column("shape", [-1] * 22, feature=labelled)
    lists = [[row % 2] for row in range(22)]
    validation = validation.add_column("colour_maybe", lists, feature=List(ClassLabel(names=names)))
    del splits["validation"]
    splits["validation_query"], splits["validation_gallery"] = (
        validation.select(range(9)),
        validation.select(range(9, 22)),
    )
    trainer = make_trainer(replace(shapes, splits=splits))
    metrics = trainer.evaluate()
    known = trainer.evaluator.metric_names(trainer.eval_dataset)
    assert "map_ignore_maybe_colour" in known and "map_shape" not in known
    of_the_trainer = ("runtime", "per_second", "preparation_time", "epoch")
    assert {f"eval_{name}" for name in known} == {name for name in metrics if not name.endswith(of_the_trainer)}


def test_values_that_no_training_image_has_are_new(make_trainer, make_model, shapes, tmp_path):
    """The checkpoint says which values it knows, and the evaluations during the training are of that training."""
    data = leave_values_out(shapes, "size", 0.25)
    data.splits["validation"] = shapes["validation"]  # with all values
    model = make_model(known_values=shapes.attributes)  # of another training
    trainer = make_trainer(
        data, model, max_steps=2, eval_strategy="steps", save_strategy="steps", eval_steps=2, save_steps=2
    )
    names = trainer.evaluator.metric_names(trainer.eval_dataset, data.values_in("train"))
    assert "map_new_size" in names and "eval_map_new" not in trainer.evaluate()
    assert model.config.known_values == shapes.attributes  # until the training begins
    before = model.fingerprint()
    trainer.train()
    assert model.fingerprint() != before

    known = CCAModel.from_pretrained(last_checkpoint(tmp_path / "out")).config.known_values
    assert known == data.values_in("train") and len(known["size"]) == 3
    labels, embeddings = shapes.labels("validation"), trainer.model.encode(shapes["validation"]["image"])
    expected = evaluate_embeddings(embeddings, labels, shapes.attributes, known_values=known).metrics()
    assert set(names) == set(expected) and {"map_new", "map_known_size"} < set(expected)
    (logged,) = (entry for entry in trainer.state.log_history if "eval_map_new" in entry)
    assert {name: logged[f"eval_{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)
    make_trainer(data, metric_for_best_model="map_new_size")


def test_an_empty_split_is_an_error_before_training(make_trainer, shapes):
    splits = DatasetDict(shapes.splits) | {"validation": shapes["validation"].select([])}
    with pytest.raises(ValueError, match="the split 'validation' is empty"):
        make_trainer(replace(shapes, splits=DatasetDict(splits)))


def test_an_evaluation_needs_images_with_labels(make_model, make_args, shapes):
    with pytest.raises(TypeError, match="retrieval is evaluated on a split's name, .* got ReadyTriplets"):
        CCATrainer(make_model(), make_args(), shapes, eval_dataset=ReadyTriplets())


def test_batches_of_a_task_have_one_size(make_trainer):
    with pytest.raises(ValueError, match="auto_find_batch_size cannot change the batches .* micro_batch_size"):
        make_trainer(auto_find_batch_size=True)
    make_trainer(auto_find_batch_size=True, triplets=ReadyTriplets())
