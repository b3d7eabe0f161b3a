"""What two processes do together, checked on each of them: `torchrun ... DATA OUTPUT`."""

import os
import sys
from pathlib import Path

import manipulation
import numpy as np
import torch
import torch.distributed as dist
import transformers
from packaging.version import Version
from pytorch_metric_learning import losses
from transformers import TrainerCallback, ViTConfig

from cca_hf.data.change_sampler import ChangeBatchSampler
from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.sampler import AttributeBatchSampler
from cca_hf.evaluation.change_search import value_centroids
from cca_hf.evaluation.retrieval.embeddings import evaluate_embeddings
from cca_hf.models.modeling_adde import ADDEModel
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.recipes.attribute_trainer import CCATrainer, make_loss
from cca_hf.training.arguments import CCATrainingArguments
from cca_hf.training.manipulation_losses import ManipulationBatch
from cca_hf.training.per_attribute_loss import PerAttributeLoss

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8}


def make_model(attributes) -> CCAModel:
    torch.manual_seed(0)
    return CCAModel.from_backbone(ViTConfig(image_size=32, **VIT), attributes, hidden_dropout_prob=0.0)


def make_args(output_dir: Path, **changes) -> CCATrainingArguments:
    settings = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "ddp_backend": "gloo",
        "bf16": False,
        "disable_tqdm": True,
        "per_device_train_batch_size": 8,
        "images_per_value": 2,
        "logging_steps": 1,
        "max_grad_norm": 0.0,
    }
    return CCATrainingArguments(**(settings | changes))


class KeepGradients(TrainerCallback):
    def __init__(self) -> None:
        self.of_step: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.of_step.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def arc_faces(data, seed: int) -> PerAttributeLoss:
    """Weights by another seed on each process: they have to become those of the first."""
    torch.manual_seed(seed)
    return PerAttributeLoss(
        {name: losses.ArcFaceLoss(len(values), VIT["hidden_size"]) for name, values in data.attributes.items()}
    )


def check_gradients(data, output_dir: Path, *, arc_face: bool = False, **loss) -> None:
    """Of the first step: those of the joined batch on one process; so is what is logged, and what the loss learns."""
    gradients = KeepGradients()
    args = make_args(output_dir, max_steps=1, eval_strategy="no", save_strategy="no", **loss)
    given = arc_faces(data, seed=dist.get_rank()) if arc_face else None
    trainer = CCATrainer(make_model(data.attributes), args, data, loss=given, callbacks=[gradients])
    trainer.train()

    alone = make_model(data.attributes).train()
    stream = AttributeBatchSampler(data.labels("train"), batch_size=8, images_per_value=2, seed=args.seed)
    batches = iter(stream)
    joined = trainer.task.batches.collator(trainer.train_dataset.__getitems__(next(batches) + next(batches)))
    every = torch.arange(len(data.attributes)).expand(16, -1)
    given = arc_faces(data, seed=0).settle(data.attributes, VIT["hidden_size"]) if arc_face else None
    objective = make_loss(args, data.attributes, VIT["hidden_size"], given)
    expected = objective.compare(alone(joined["pixel_values"], every).embeddings, joined["labels"]).loss
    expected.backward()
    objective.optimizer_step()
    for together, by_one in zip(trainer.loss.parameters(), objective.parameters(), strict=True):
        torch.testing.assert_close(together, by_one, atol=1e-6, rtol=1e-5)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert abs(logged[0] - expected.item()) < 1e-5 * abs(expected.item()), (logged, expected)
    for name, parameter in alone.named_parameters():
        assert parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(gradients.of_step[0][name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)


def check_gradients_of_manipulation(data_folder: Path, output_dir: Path) -> None:
    """Of the last stage of ADDE, whose pairs and memory are those of the joined batch."""
    gradients = KeepGradients()
    settings = {"ddp_backend": "gloo", "max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    settings |= {"encoder": "mlp", "per_device_train_batch_size": 8, "max_grad_norm": 0.0, "consistency": "triplet"}
    trainer = manipulation.make_trainer(data_folder, output_dir, gradients, **settings)
    trainer.train()

    alone = manipulation.make_trainer(data_folder, output_dir, manipulation.Steps(), **settings)
    model = alone.model
    model.load_state_dict(ADDEModel.from_pretrained(output_dir / "encoder").state_dict())
    model.set_prototypes(*(torch.from_numpy(each) for each in prototypes_of(trainer, output_dir)))
    batches = iter(ChangeBatchSampler(alone.data.labels("train"), batch_size=8, seed=alone.args.seed))
    joined = alone.task.batches.collator(alone.train_dataset.__getitems__(next(batches) + next(batches)))
    output = model.train()(joined["pixel_values"])
    parts = output.embeddings, output.logits, output.prototypes, joined["labels"]
    alone.task.loss.compare(ManipulationBatch(*parts)).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients.of_step[-1][name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)
    assert model.memory.weight.grad.any() and model.classifiers.weight.grad.any()


def prototypes_of(trainer, output_dir: Path):
    """Those that the second stage has computed: the means of the training images under the encoder."""
    encoder = ADDEModel.from_pretrained(output_dir / "encoder")
    embeddings, labels = encoder.encode(trainer.data["train"]["image"]), trainer.data.labels("train")
    values = value_centroids(embeddings, labels, trainer.data.attributes)
    return values.vectors, values.known


class Triplets(torch.utils.data.Dataset):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(16, 3, 3, 32, 32, generator=generator)

    def __len__(self) -> int:
        return 16

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        anchor, positive, negative = self.images[row]
        return {"anchor": anchor, "positive": positive, "negative": negative, "condition": torch.tensor(row % 5)}


def check_gradients_of_triplets(data, output_dir: Path) -> None:
    """All 16 triplets are the joined batch, in whatever order they are dealt out."""
    gradients = KeepGradients()
    args = make_args(output_dir, max_steps=1, eval_strategy="no", save_strategy="no")
    trainer = CCATrainer(make_model(data.attributes), args, data, triplets=Triplets(), callbacks=[gradients])
    trainer.train()
    alone = make_model(data.attributes).train()
    batch = torch.utils.data.default_collate([Triplets()[row] for row in range(16)])
    embeddings = [alone(batch[name], batch["condition"]).embeddings for name in ("anchor", "positive", "negative")]
    anchor, positive, negative = embeddings
    costs = torch.relu((anchor * negative).sum(1) - (anchor * positive).sum(1) + 0.2)
    (costs.sum() / (costs > 0).sum()).backward()
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(gradients.of_step[0][name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)


def check_training_and_resuming(data, output_dir: Path) -> None:
    """Both processes agree on the figures, which are those of the model alone; a resumed epoch goes on as it was."""
    args = make_args(
        output_dir,
        num_train_epochs=2,
        learning_rate=1e-3,
        eval_strategy="steps",
        eval_steps=5,
        save_strategy="steps",
        save_steps=5,  # of 10 an epoch
        save_total_limit=None,
        load_best_model_at_end=False,
    )
    trainer = CCATrainer(make_model(data.attributes), args, data)
    assert trainer.train().global_step == 20
    metrics = trainer.evaluate()
    embeddings = trainer.model.encode(data["validation"]["image"])
    expected = evaluate_embeddings(embeddings, data.labels("validation"), data.attributes).metrics()
    assert all(abs(metrics[f"eval_{name}"] - value) < 1e-6 for name, value in expected.items())
    assert (trainer.evaluation_result is None) == (dist.get_rank() > 0)
    final = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    together = [torch.empty_like(final["layernorm.weight"]) for _ in range(2)]
    dist.all_gather(together, final["layernorm.weight"])
    assert together[0].equal(together[1])

    if Version(transformers.__version__) < Version("5.23"):
        return  # older ones cannot load an optimizer's state to "cpu:0", which is what they call a CPU among several
    resumed = CCATrainer(make_model(data.attributes), args, data)
    resumed.train(resume_from_checkpoint=str(output_dir / "checkpoint-15"))
    for name, weight in resumed.model.state_dict().items():
        torch.testing.assert_close(weight, final[name], atol=1e-6, rtol=0, msg=name)


def check_batches(data, output_dir: Path) -> None:
    """The processes get different batches, and others in each epoch."""
    trainer = CCATrainer(make_model(data.attributes), make_args(output_dir), data)
    loader = trainer.get_train_dataloader()
    seen = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        batch = next(iter(loader))["pixel_values"].mean((1, 2, 3))
        parts = [torch.empty_like(batch) for _ in range(2)]
        dist.all_gather(parts, batch)
        seen += [tuple(np.round(part.tolist(), 5)) for part in parts]
    assert len(set(seen)) == 4, seen


if __name__ == "__main__":
    torch.set_num_threads(1)
    data = load_attribute_dataset(Path(sys.argv[1]))
    output = Path(sys.argv[2])
    check_gradients(data, output / "soft")
    check_gradients(data, output / "all", loss="triplet")
    check_gradients(data, output / "micro", micro_batch_size=3)
    check_gradients(data, output / "arc-face", arc_face=True)
    check_gradients_of_triplets(data, output / "triplets")
    check_gradients_of_manipulation(Path(sys.argv[1]), output / "manipulation")
    check_batches(data, output / "batches")
    check_training_and_resuming(data, output / "run")
    print(f"rank {dist.get_rank()}: all held", flush=True)
    dist.barrier()
    os._exit(0)  # gloo's threads now and then abort a process that tears its groups down; all has been said by now
