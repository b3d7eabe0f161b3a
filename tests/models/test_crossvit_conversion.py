"""Weights of CrossViT in the names of timm and of the authors, to a checkpoint and back."""

import argparse
import contextlib
import shlex

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ViTConfig
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from cca_hf.cli.main import main
from cca_hf.models.configuration_crossvit import CrossViTConfig
from cca_hf.models.conversion_crossvit import make_image_processor
from cca_hf.models.modeling_crossvit import CrossViTForImageClassification, CrossViTModel

from ..pages import run_cca, run_page

# Two branches 32 and 64 wide, so that the number of heads is known; images of 48 pixels.
SMALL = {"image_size": 48, "hidden_sizes": [32, 64], "num_attention_heads": [1, 1], "num_layers": [1, 2]}
SMALL |= {"num_blocks": 2, "num_labels": 7}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return CrossViTForImageClassification(CrossViTConfig(**SMALL)).to_timm()


def test_the_names_are_those_of_timm(weights):
    assert weights["pos_embed_0"].shape == (1, 17, 32) and weights["cls_token_1"].shape == (1, 1, 64)
    shapes = {
        "patch_embed.1.proj.weight": (64, 3, 16, 16),
        "blocks.0.blocks.0.0.attn.qkv.weight": (96, 32),
        "blocks.1.blocks.1.1.mlp.fc1.weight": (256, 64),
        "blocks.0.projs.0.0.weight": (32,),
        "blocks.0.projs.0.2.weight": (64, 32),
        "blocks.0.fusion.0.norm1.weight": (64,),
        "blocks.0.fusion.0.attn.wq.weight": (64, 64),
        "blocks.0.revert_projs.0.0.weight": (64,),
        "blocks.0.revert_projs.0.2.weight": (32, 64),
        "norm.1.bias": (64,),
        "head.0.weight": (7, 32),
    }
    assert {name: tuple(weights[name].shape) for name in shapes} == shapes


def test_queries_keys_and_values_are_rows_of_one_matrix(weights, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    attention = CrossViTModel.from_timm(tmp_path / "model.safetensors").blocks[0].branches[0][0].attention
    rows = weights["blocks.0.blocks.0.0.attn.qkv.weight"]
    for place, part in enumerate((attention.q_proj, attention.k_proj, attention.v_proj)):
        assert torch.equal(part.weight, rows[32 * place : 32 * (place + 1)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_file_of_timm_becomes_a_checkpoint_and_is_the_same_bits_again(weights, dtype, tmp_path, capsys):
    timm = {name: weight.to(dtype) for name, weight in weights.items()}
    save_file(timm, tmp_path / "timm.safetensors", metadata={"format": "pt"})
    (tmp_path / "names.txt").write_text("\n".join("abcdefg") + "\n")
    output = run_cca(shlex.split("cca convert crossvit timm.safetensors out --labels names.txt"), tmp_path)
    assert output == "written: out\n"
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out", dtype="auto")
    assert type(model) is CrossViTForImageClassification and model.dtype == dtype
    assert list(model.config.id2label.values()) == list("abcdefg") and model.config.label2id["c"] == 2
    run_cca(shlex.split("cca convert crossvit out back.safetensors --to timm"), tmp_path)
    assert same_bits(load_file(tmp_path / "back.safetensors"), timm)
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "timm.safetensors").read_bytes()
    assert len(list((tmp_path / "out").iterdir())) == 8  # five of them code
    assert main(["convert", "crossvit", str(tmp_path / "out"), str(tmp_path / "folder"), "--to", "timm"]) == 1
    assert "ends in one of .safetensors, .pth, .pt, .bin; got folder" in capsys.readouterr().err


def test_a_file_of_the_authors_becomes_a_checkpoint_and_is_the_same_bits_again(weights, tmp_path):
    def rename(name: str) -> str:
        return name.replace("pos_embed_", "pos_embed.").replace("cls_token_", "cls_token.")

    ibm = {rename(name): weight for name, weight in weights.items()}
    torch.save({"model": ibm}, tmp_path / "crossvit.pth")
    output = run_cca(shlex.split("cca convert crossvit crossvit.pth out"), tmp_path)
    assert output == "written: out\nThe classes are named by numbers; --labels gives them names.\n"
    run_cca(shlex.split("cca convert crossvit out back.pth --to ibm"), tmp_path)
    assert same_bits(torch.load(tmp_path / "back.pth", weights_only=True), ibm)


def test_a_published_size_there_and_back(tmp_path):
    torch.manual_seed(0)
    timm = CrossViTForImageClassification(CrossViTConfig.from_variant("crossvit_tiny_240")).to_timm()
    save_file(timm, tmp_path / "model.safetensors")
    model = CrossViTForImageClassification.from_timm(tmp_path)  # a folder, as a download of the Hub
    assert model.config.num_labels == 1000 and not model.training
    assert same_bits(model.to_timm(), timm)


def test_weights_without_a_classifier(weights, tmp_path):
    save_file({name: w for name, w in weights.items() if "head" not in name}, tmp_path / "timm.safetensors")
    run_cca(shlex.split("cca convert crossvit timm.safetensors out"), tmp_path)
    model = CrossViTModel.from_pretrained(tmp_path / "out")
    assert torch.equal(model.layernorms[1].weight, weights["norm.1.weight"])
    with pytest.raises(ValueError, match="these weights have no classifier: load them with CrossViTModel.from_timm"):
        CrossViTForImageClassification.from_timm(tmp_path / "timm.safetensors")


def test_names_of_the_classes_lie_beside_the_weights(weights, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"label_names": ["p", "q", "r", "s", "t", "u", "v"]}')
    model = CrossViTForImageClassification.from_timm(tmp_path)
    assert model.config.id2label == dict(enumerate("pqrstuv"))
    with pytest.raises(ValueError, match="the classifier has 7 classes, and 2 names were given"):
        CrossViTForImageClassification.from_timm(tmp_path, id2label=["a", "b"])


@pytest.mark.parametrize(("name", "shortest", "side"), [("15_240", 274, 240), ("18_dagger_408", 408, 408)])
def test_the_image_processor_is_that_of_the_published_evaluation(name, shortest, side, tmp_path):
    make_image_processor(CrossViTConfig.from_variant(f"crossvit_{name}")).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path).to_dict()
    assert processor["size"] == {"shortest_edge": shortest} and processor["resample"] == 3  # bicubic
    assert processor["crop_size"] == {"height": side, "width": side} and processor["do_center_crop"]
    assert list(processor["image_mean"]) == [0.485, 0.456, 0.406]
    assert list(processor["image_std"]) == [0.229, 0.224, 0.225]


def test_the_page(weights, tmp_path):
    (tmp_path / "timm" / "crossvit_15_240.in1k").mkdir(parents=True)
    save_file(weights, tmp_path / "timm" / "crossvit_15_240.in1k" / "model.safetensors")
    torch.save(weights, tmp_path / "crossvit_small_224.pth")
    ViTConfig(id2label=dict(enumerate("abcdefg"))).save_pretrained(tmp_path / "google" / "vit-base-patch16-224")
    Image.fromarray(np.full((60, 80, 3), 99, dtype=np.uint8)).save(tmp_path / "photo.jpg")
    ran = list(run_page("docs/crossvit.md", tmp_path))
    assert len(ran) >= 6
    names = ran[-1].names
    assert {each["label"] for each in names["classify"](str(tmp_path / "photo.jpg"))} < set("abcdefg")
    assert names["small"].config.num_labels == 3
    assert names["embeddings"].shape == (1, 2, 256)


@pytest.mark.parametrize("name", ["crossvit.pth", "crossvit.safetensors"])
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_truncated_file(weights, name, kept, tmp_path, capsys):
    path = tmp_path / name
    torch.save(weights, path) if name.endswith("pth") else save_file(weights, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert main(["convert", "crossvit", str(path), str(tmp_path / "out")]) == 1
    assert f"{name} is truncated or damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_outputs_are_new_and_checkpoints_of_crossvit(weights, tmp_path, capsys):
    save_file(weights, tmp_path / "timm.safetensors")
    ViTConfig().save_pretrained(tmp_path / "vit")
    for words, message in {
        "timm.safetensors vit": "vit exists already; choose a new folder",
        "vit timm.safetensors --to timm": "timm.safetensors exists already; choose a new file",
        "vit new.pth --to ibm": "vit is a checkpoint of type 'vit', not of CrossViT",
        "missing.pth out": "there is no file missing.pth",
    }.items():
        with contextlib.chdir(tmp_path):
            assert main(["convert", "crossvit", *words.split()]) == 1
        assert message in capsys.readouterr().err


def test_a_configuration_for_heads_of_another_width(weights, tmp_path):
    save_file(weights, tmp_path / "timm.safetensors")
    config = CrossViTConfig(**SMALL | {"num_attention_heads": [4, 4]})
    model = CrossViTModel.from_timm(tmp_path / "timm.safetensors", config=config)
    assert model.blocks[0].fusions[0].attention.num_heads == 4
    with pytest.raises(ValueError, match="give either config or id2label"):
        CrossViTModel.from_timm(tmp_path / "timm.safetensors", config=config, id2label=list("abcdefg"))


def test_a_file_with_other_objects_runs_no_code(weights, tmp_path):
    torch.save({"model": weights, "args": argparse.Namespace(lr=1)}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="checkpoint.pth is damaged, or contains other objects than weights, which"):
        CrossViTModel.from_timm(tmp_path / "checkpoint.pth")


def test_weights_of_something_else(weights, tmp_path):
    def load(changed):
        save_file(changed, tmp_path / "model.safetensors")
        return CrossViTForImageClassification.from_timm(tmp_path / "model.safetensors")

    with pytest.raises(ValueError, match="these are not the weights of a CrossViT: 'pos_embed_0' is missing"):
        load({"layer.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="the weights of a CrossViT lack 'norm.1.bias': the file is incomplete"):
        load({name: weight for name, weight in weights.items() if name != "norm.1.bias"})
    with pytest.raises(ValueError, match="these are not the weights of a CrossViT: unknown 'extra'"):
        load(weights | {"extra": torch.zeros(2)})
    with pytest.raises(ValueError, match="(?s)do not fit the configuration: .*layernorms.1.weight"):
        load(weights | {"norm.1.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="has no state dict: names with tensors"):
        torch.save([1, 2], tmp_path / "list.pth")
        CrossViTModel.from_timm(tmp_path / "list.pth")
