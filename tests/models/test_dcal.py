"""DCAL against its equations and plain loops, on every kind of plain vision transformer."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, gelu, layer_norm, linear
from transformers import (
    AutoModel,
    Dinov2WithRegistersConfig,
    IJepaConfig,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from cca_hf.models.modeling_dcal import DCALConfig, DCALForImageClassification, DCALModel, draw_partners

from .conftest import PASSES_SETTINGS, TINY, tiny_backbone

KINDS = ["vit", "deit", *(pytest.param(kind, marks=PASSES_SETTINGS) for kind in ("dinov2", "registers"))]


def backbone_of(kind: str):
    if kind == "registers":
        shape = {name: value for name, value in TINY.items() if name != "intermediate_size"}
        return Dinov2WithRegistersConfig(**shape, mlp_ratio=2, num_register_tokens=3)
    return tiny_backbone(kind)


def randomised(model):
    """All weights are drawn anew, so that none is 0 or 1 and the attention is far from uniform."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name != "loss_weights":
                torch.nn.init.normal_(weight, mean=float(name.endswith("weight") and weight.ndim == 1), std=0.3)
    return model.eval()


def make(model_class=DCALModel, kind: str = "vit", **fields):
    return randomised(model_class(DCALConfig(backbone_config=backbone_of(kind), **fields)))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# ---- The equations, on the weights of a ViT ----


class Equations:
    """Self-attention, PWCA, the roll-out and GLCA, one image at a time, on the state dict of a model in float64."""

    def __init__(self, model: DCALModel):
        self.model, self.weights = model, model.state_dict()
        self.eps = model.config.backbone_config.layer_norm_eps
        self.heads = model.config.backbone_config.num_attention_heads

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return layer_norm(x, x.shape[-1:], weight, bias, self.eps)

    def apply(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def layer(self, name: str, x: torch.Tensor, asked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries x (Q, D) attend to tokens (N, D) -> the new x, and the weights (heads, Q, N)."""
        queries, tokens = self.norm(f"{name}.layernorm_before", x), self.norm(f"{name}.layernorm_before", asked)
        q, k, v = (
            self.apply(f"{name}.attention.{part}_proj", states)
            for part, states in (("q", queries), ("k", tokens), ("v", tokens))
        )
        size = q.shape[1] // self.heads
        attended, weights = [], []
        for head in range(self.heads):
            own = slice(head * size, (head + 1) * size)
            scores = q[:, own] @ k[:, own].T / math.sqrt(size)
            weights.append(scores.exp() / scores.exp().sum(dim=1, keepdim=True))
            attended.append(weights[-1] @ v[:, own])
        x = x + self.apply(f"{name}.attention.o_proj", torch.cat(attended, dim=1))
        inner = self.apply(f"{name}.mlp.fc1", self.norm(f"{name}.layernorm_after", x))
        return x + self.apply(f"{name}.mlp.fc2", gelu(inner)), torch.stack(weights)

    def __call__(self, images: torch.Tensor, partners: list[int]) -> dict[str, torch.Tensor]:
        own = list(self.model.backbone.embeddings(images))
        paired = list(own)
        tokens = len(own[0])
        products = [torch.eye(tokens, dtype=own[0].dtype) for _ in own]
        for layer in range(self.model.config.backbone_config.num_hidden_layers):
            name = f"backbone.layers.{layer}"
            paired = [
                self.layer(name, mine, torch.cat([mine, own[partner]]))[0]
                for mine, partner in zip(paired, partners, strict=True)
            ]
            updated = [self.layer(name, x, x) for x in own]
            own = [x for x, _ in updated]
            products = [
                (weights.mean(dim=0) + torch.eye(tokens)) / 2 @ product
                for (_, weights), product in zip(updated, products, strict=True)
            ]
        local = []
        for x, product in zip(own, products, strict=True):
            count = max(1, round(self.model.config.local_share * (tokens - 1)))
            most = [token for token in product[0].argsort(descending=True).tolist() if token != 0][:count]
            local.append(self.norm("local_layer.layernorm", self.layer("local_layer", x[[0, *most]], x)[0])[0])
        return {
            "self": torch.stack([self.norm("backbone.layernorm", x)[0] for x in own]),
            "local": torch.stack(local),
            "pairwise": torch.stack([self.norm("backbone.layernorm", x)[0] for x in paired]),
            "rollout": torch.stack([product[0] for product in products]),
        }


@pytest.mark.parametrize("learns", [False, True], ids=["inference", "gradients"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("share", [0.1, 0.7])  # GLCA without and with projected keys, see `CrossAttention`
def test_all_branches_equal_the_equations(share, implementation, learns, images):
    model = make(local_share=share, attn_implementation=implementation).double()
    partners = [2, 0, 1, 1]
    with torch.set_grad_enabled(learns):
        outputs = model(images.double(), torch.tensor(partners))
        plain = model(images.double())
    with torch.no_grad():
        expected = Equations(model)(images.double(), partners)
    assert model.config.branches == ("self", "local", "pairwise")
    for name, embedding in zip(model.config.branches, outputs.branch_embeddings, strict=True):
        torch.testing.assert_close(embedding, expected[name], rtol=0, atol=1e-6)
    torch.testing.assert_close(outputs.rollout, expected["rollout"], rtol=0, atol=1e-6)
    both = torch.cat([expected["self"], expected["local"]], dim=1)
    torch.testing.assert_close(outputs.pooler_output, both, rtol=0, atol=1e-6)
    # nothing of PWCA is left without partners
    assert len(plain.branch_embeddings) == 2 and torch.allclose(plain.pooler_output, outputs.pooler_output)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (outputs.branch_embeddings[one] - outputs.branch_embeddings[other]).abs().max() > 0.1
    assert outputs.rollout.std(dim=1).min() > 0.01


@pytest.mark.parametrize("size", [(32, 32), (64, 32)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_rollout_equals_the_product_of_all_attentions(kind, size):
    """Images of a rectangle too, as in re-identification; queries of GLCA are places in the image."""
    model = make(kind=kind)
    images = torch.randn(3, 3, *size)
    seen = []
    model.local_layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    native = AutoModel.from_config(backbone_of(kind), attn_implementation="eager")
    native.load_state_dict(model.backbone.state_dict(), strict=False)
    place = {} if "registers" in kind or kind == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.inference_mode():
        attentions = native.eval()(images, output_attentions=True, **place).attentions
        outputs = model(images)
        maps = model.rollout_maps(images)
    product = torch.eye(attentions[0].shape[-1])
    for weights in attentions:
        product = (weights.mean(dim=1) + torch.eye(product.shape[-1])) / 2 @ product
    torch.testing.assert_close(outputs.rollout, product[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(outputs.rollout.sum(dim=1), torch.ones(3))
    patches = (size[0] // 8) * (size[1] // 8)
    assert maps.shape == (3, size[0] // 8, size[1] // 8)
    assert torch.equal(maps.flatten(1), outputs.rollout[:, -patches:])
    prefix = product.shape[-1] - patches
    assert prefix == {"vit": 1, "deit": 2, "dinov2": 1, "registers": 4}[kind]
    most = outputs.rollout[:, prefix:].topk(round(0.1 * patches)).indices + prefix
    assert torch.equal(seen[0][:, 1:].sort().values, most.sort().values) and not seen[0][:, 0].any()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_both_attentions_the_outputs_are_those_of_the_backbone(kind, implementation, images):
    native = randomised(AutoModel.from_config(backbone_of(kind), attn_implementation=implementation))
    for pairwise in (False, True):  # which is off outside of training
        switches = {"use_local_attention": False, "use_pairwise_attention": pairwise}
        model = DCALModel(
            DCALConfig(backbone_config=backbone_of(kind), attn_implementation=implementation, **switches)
        ).eval()
        model.backbone.load_state_dict(native.state_dict(), strict=False)
        with torch.inference_mode():
            outputs, expected = model(images), native(images)
        assert torch.equal(outputs.last_hidden_state, expected.last_hidden_state)
        assert torch.equal(outputs.pooler_output, expected.last_hidden_state[:, 0])


def test_a_classifier_without_both_attentions_is_that_of_the_vit(images):
    native = randomised(ViTForImageClassification(ViTConfig(**TINY, num_labels=5)))
    model = make(DCALForImageClassification, num_labels=5, use_local_attention=False, use_pairwise_attention=False)
    weights = {f"dcal.backbone.{name.removeprefix('vit.')}": each for name, each in native.state_dict().items()}
    head = {f"classifiers.0.{part}": weights.pop(f"dcal.backbone.classifier.{part}") for part in ("weight", "bias")}
    model.load_state_dict(weights | head)  # has no other parameter
    labels = torch.tensor([0, 1, 2, 4])
    for mode in (False, True):
        outputs, expected = model.train(mode)(images, labels=labels), native.train(mode)(images, labels=labels)
        assert torch.equal(outputs.logits, expected.logits) and torch.equal(outputs.loss, expected.loss)


def test_an_image_that_is_its_own_partner_sees_nothing_new(images):
    model = make()
    with torch.inference_mode():
        alone = model(images[:1], draw_partners(None, 1)).branch_embeddings
        pairs = [model(each, torch.tensor([1, 1])).branch_embeddings for each in (images[:2], images[[0, 2]])]
    torch.testing.assert_close(alone[2], alone[0], rtol=0, atol=1e-5)
    # another second image changes the branch of PWCA, and no other
    for branch, changes in enumerate([False, False, True]):
        difference = (pairs[0][branch][0] - pairs[1][branch][0]).abs().max()
        assert difference > 0.1 if changes else difference < 1e-5


def test_attentions_and_hidden_states_are_those_of_the_backbone(images):
    model = make()
    with torch.inference_mode():
        expected = model(images)
        model.set_attn_implementation("eager")
        eager = model(images)
        model.set_attn_implementation("sdpa")
        outputs = model(images, torch.tensor([1, 0, 3, 2]), output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(eager.pooler_output, expected.pooler_output, rtol=0, atol=1e-5)
    torch.testing.assert_close(eager.rollout, expected.rollout, rtol=0, atol=1e-6)
    torch.testing.assert_close(outputs.pooler_output, expected.pooler_output, rtol=0, atol=1e-5)
    assert [tuple(each.shape) for each in outputs.attentions] == [(4, 4, 17, 17)] * 3
    assert [tuple(each.shape) for each in outputs.hidden_states] == [(4, 17, 32)] * 4
    assert expected.attentions is None and expected.hidden_states is None
    with torch.inference_mode():
        last = model.backbone.layernorm(outputs.hidden_states[-1])
    torch.testing.assert_close(last, outputs.last_hidden_state)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant, images):
    gradients = []
    for checkpointing in (False, True):
        model = make(DCALForImageClassification, num_labels=3).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(0)  # the same partners
        model(images.clone().requires_grad_(), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_half_precision(images):
    model = make().to(torch.bfloat16)
    with torch.inference_mode():
        outputs = model(images)
    assert outputs.pooler_output.dtype == torch.bfloat16 and outputs.rollout.dtype == torch.float32
    torch.testing.assert_close(outputs.rollout.sum(dim=1), torch.ones(4))


# ---- Training ----


def test_partners_are_of_another_class():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    drawn = torch.stack([draw_partners(labels, 6, torch.Generator().manual_seed(seed)) for seed in range(50)])
    assert drawn.dtype == torch.int64 and (labels[drawn] != labels).all()
    assert [sorted(set(column.tolist())) for column in drawn.T] == [[3, 4, 5]] * 3 + [[0, 1, 2, 4, 5]] + [
        [0, 1, 2, 3]
    ] * 2
    soft = torch.eye(3)[labels] * 0.7 + 0.1
    assert torch.equal(draw_partners(soft, 6, torch.Generator().manual_seed(0)), drawn[0])


@pytest.mark.parametrize("labels", [None, torch.zeros(3)])
def test_partners_are_any_other_image_where_there_is_no_other_class(labels):
    drawn = torch.stack([draw_partners(labels, 3, torch.Generator().manual_seed(seed)) for seed in range(50)])
    assert [sorted(set(column.tolist())) for column in drawn.T] == [[1, 2], [0, 2], [0, 1]]


def test_the_loss_weights_the_branches(images):
    model = make(DCALForImageClassification, num_labels=3).train()
    labels = torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        model.loss_weights.copy_(torch.tensor([0.5, -1.0, 2.0]))
    outputs = model(images, labels=labels)
    losses = [cross_entropy(logits, labels).item() for logits in outputs.branch_logits]
    expected = sum(math.exp(-w) * loss + w for w, loss in zip((0.5, -1.0, 2.0), losses, strict=True)) / 2
    assert len(losses) == 3 and outputs.loss.item() == pytest.approx(expected, rel=1e-6)
    outputs.loss.backward()
    slopes = [(1 - math.exp(-w) * loss) / 2 for w, loss in zip((0.5, -1.0, 2.0), losses, strict=True)]
    assert model.loss_weights.grad.tolist() == pytest.approx(slopes, rel=1e-5)
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_pwca_has_the_classifier_of_self_attention(images):
    """With one image in the batch, both branches have the same embedding."""
    model = make(DCALForImageClassification, num_labels=3).train()
    first, local, pairwise = model(images[:1], labels=torch.tensor([1])).branch_logits
    torch.testing.assert_close(first, pairwise, rtol=0, atol=1e-5)
    assert (first - local).abs().max() > 0.1
    assert sum(name.startswith("classifiers") for name in model.state_dict()) == 4


def test_the_probabilities_are_the_mean_of_both_classifiers(images):
    model = make(DCALForImageClassification, num_labels=3)
    labels = torch.tensor([0, 1, 2, 0])
    with torch.inference_mode():
        outputs = model(images, labels=labels)
    assert len(outputs.branch_logits) == 2
    probabilities = torch.stack([logits.softmax(dim=1) for logits in outputs.branch_logits]).mean(dim=0)
    torch.testing.assert_close(outputs.logits.exp(), probabilities)
    chosen = probabilities[torch.arange(4), labels]
    assert outputs.loss.item() == pytest.approx(-chosen.log().mean().item(), rel=1e-5)


def test_labels_of_other_problems(images):
    several = make(DCALForImageClassification, num_labels=3, problem_type="multi_label_classification")
    outputs = several(images, labels=torch.eye(3)[[0, 1, 2, 0]])
    torch.testing.assert_close(outputs.logits, torch.stack(outputs.branch_logits).mean(dim=0))
    soft = torch.tensor([[0.7, 0.3, 0.0]] * 4)
    single = make(DCALForImageClassification, num_labels=3, problem_type="single_label_classification")
    loss = single(images, labels=soft).loss
    torch.testing.assert_close(loss, -(soft * single(images).logits).sum(dim=1).mean())


@pytest.mark.parametrize(
    ("local", "pairwise", "branches"),
    [
        (True, False, ("self", "local")),
        (False, True, ("self", "pairwise")),
        (True, True, ("self", "local", "pairwise")),
    ],
)
def test_switches_of_the_ablation(local, pairwise, branches, images):
    model = make(DCALForImageClassification, num_labels=3, use_local_attention=local, use_pairwise_attention=pairwise)
    assert model.config.branches == branches and model.loss_weights.shape == (len(branches),)
    assert len(model.classifiers) == 1 + local
    outputs = model.train()(images, labels=torch.tensor([0, 1, 2, 0]))
    assert len(outputs.branch_logits) == len(branches) and outputs.loss.isfinite()
    assert (outputs.rollout is not None) == local
    assert model.dcal.eval()(images).pooler_output.shape == (4, 64 if local else 32)


def test_the_trainer_of_transformers_sees_the_logits_alone(tmp_path):
    model = make(DCALForImageClassification, num_labels=3)
    data = [{"pixel_values": torch.randn(3, 32, 32), "labels": row % 3} for row in range(5)]
    arguments = TrainingArguments(
        tmp_path, per_device_train_batch_size=4, max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    trainer.train()  # the second batch has one image
    prediction = trainer.predict(data)
    assert prediction.predictions.shape == (5, 3) and prediction.label_ids.tolist() == [0, 1, 2, 0, 1]
    assert math.isfinite(prediction.metrics["test_loss"])


# ---- Parameters ----


@pytest.mark.parametrize(
    ("width", "heads", "side", "classes", "backbone", "share"),
    [(192, 3, 448, 200, 5_675_912, 0.085), (768, 12, 256, 576, 86_287_680, 0.087)],
    ids=["DeiT-T, CUB", "ViT-B, VeRi"],
)
def test_parameters_are_those_of_the_papers_table(width, heads, side, classes, backbone, share):
    vit = ViTConfig(
        hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width, image_size=side, patch_size=16
    )
    with torch.device("meta"):
        plain, dcal = (
            DCALForImageClassification(
                DCALConfig(
                    backbone_config=vit, num_labels=classes, use_local_attention=use, use_pairwise_attention=use
                )
            )
            for use in (False, True)
        )
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (plain, dcal)]
    block = 12 * width**2 + 13 * width + 2 * width  # a layer, and the last normalisation
    assert counts == [backbone, backbone + block + (width + 1) * classes + 3]
    assert counts[1] / (counts[0] * (1 + share)) == pytest.approx(1, abs=0.005)


# ---- Bad input ----


def test_an_image_smaller_than_a_patch():
    model = make(DCALForImageClassification, num_labels=3)
    assert model(torch.zeros(1, 3, 8, 8)).logits.shape == (1, 3)
    with pytest.raises(
        ValueError, match="images of 7 x 32 pixels are smaller than a patch: this model needs at least"
    ):
        model(torch.zeros(1, 3, 7, 32))


def test_one_class():
    with pytest.raises(ValueError, match="a classifier needs at least 2 classes; got num_labels=1. DCALModel is the"):
        make(DCALForImageClassification, num_labels=1)
    model = make(DCALForImageClassification, num_labels=1, problem_type="regression")
    assert model(torch.zeros(2, 3, 32, 32), labels=torch.zeros(2)).loss.isfinite()


def test_partners_that_do_not_fit(images):
    with pytest.raises(ValueError, match="partners were given, but this model has use_pairwise_attention=False"):
        make(use_pairwise_attention=False)(images, torch.tensor([1, 0, 3, 2]))
    with pytest.raises(ValueError, match=r"partners needs one row for each of the 4 images; got \(2,\)"):
        make()(images, torch.tensor([1, 0]))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "convnext",
            "DCAL needs a plain vision transformer, such as ViT, DeiT or DINOv2; the configuration of 'convnext",
        ),
        ("swin", "the configuration of 'swin' has no number num_hidden_layers"),
        ("siglip", "SiglipVisionModel is no plain vision transformer: DCAL saw 0 self-attentions in its 3 layers"),
        ("ijepa", "IJepaModel has no class token before its 16 patches: it returns 16 tokens"),
    ],
)
def test_a_backbone_that_is_no_plain_transformer(kind, message):
    with pytest.raises(Exception) as raised:
        DCALModel.from_backbone(IJepaConfig(**TINY) if kind == "ijepa" else tiny_backbone(kind))
    assert message in str(raised.value)


def test_a_backbone_whose_attention_was_changed(images):
    model = make()
    model.backbone.set_attn_implementation("eager")
    with pytest.raises(
        ValueError, match="ViTModel is no plain vision transformer: DCAL saw 0 self-attentions in its 3"
    ):
        model(images)


def test_settings_that_do_not_fit():
    with pytest.raises(Exception, match="local_share must be above 0 and at most 1; got 1.5"):
        DCALConfig(local_share=1.5)
    with pytest.raises(TypeError, match="DCALConfig has no field 'local_shares'. Did you mean 'local_share'?"):
        DCALModel.from_backbone(backbone_of("vit"), local_shares=0.3)
    with pytest.raises(Exception, match="the backbone is of type 'vitt', which this version of transformers does not"):
        DCALConfig(backbone_config={"model_type": "vitt"})
