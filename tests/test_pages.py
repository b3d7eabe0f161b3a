"""Runs every snippet of the guides in order, on the paths that they name, as for the README."""

from pathlib import Path

import numpy as np
import pytest
import torch

from .pages import add_crossvit, add_sentence_encoder, make_world, run_page


@pytest.fixture
def world(tmp_path: Path) -> Path:
    make_world(tmp_path)
    return tmp_path


def test_quick_start(world: Path) -> None:
    """As if `cca try` had trained on the folder photos; tests of `cca try` run the training."""
    pytest.importorskip("lancedb", reason='the index needs LanceDB: pip install "cca_hf[search]"')
    (world / "cca-try").symlink_to(world / "me" / "cca-shoes")
    (world / "photos").symlink_to(world / "me" / "shoes")
    ran = list(run_page("docs/quick_start.md", world))
    assert [block.command[:2] for block in ran] == [
        ["pip", "install"],
        [],
        ["pip", "install"],
        ["cca", "index"],
        ["cca", "search"],
    ]
    assert ran[1].printed.split()[::2] == ["colour", "heel_height", "closure"]
    assert (world / "found.html").read_text(encoding="utf-8").count("data:image/jpeg;base64,") == 11  # with the query


def test_search(world: Path) -> None:
    pytest.importorskip("lancedb", reason='the index needs LanceDB: pip install "cca_hf[search]"')
    add_crossvit(world)
    steps = []
    for ran in run_page("docs/search.md", world):
        steps.append(" ".join(ran.command[:2]) or ran.heading)
        names = ran.names
        if ran.command[:1] == ["cca"]:
            assert "colour" in ran.printed
        elif steps[-1] == "From Python":
            prices = [hit.columns["price"] for hit in names["hits"]]
            assert len(prices) == 10 and max(prices) < 50
        elif steps[-1] == "Kinds of queries":
            assert len(names["one"]) == 5 and "sku-3" not in {hit.item_id for hit in names["one"] + names["but_red"]}
            assert all(len(names[name]) == 10 for name in ("mixed", "red", "but_red", "same_colour"))
            assert [len(hits) for hits in names["many"]] == [10, 10]
        elif steps[-1] == "This one, but red" and "results" not in names:
            assert all(len(names[name]) == 10 for name in ("two", "any_heel", "mostly_red"))
        elif steps[-1] == "This one, but red":
            assert [len(hits) for hits in names["results"]] == [10, 10]
        elif steps[-1] == "Filters":
            assert (names["cheap"], names["same"], names["unknown"]) == (5, 5, 4)
        elif steps[-1] == "A model without attributes":
            assert len(names["hits"]) == 5 and names["hits"] == names["same"] and names["embeddings"].shape == (2, 36)
    shell = ["pip install"] * 2 + ["cca index"] + ["cca search"] * 4
    queries = ["From Python", "Kinds of queries", *["This one, but red"] * 2, "Filters"]
    without = ["cca index", "cca search", "cca search", "A model without attributes"]
    assert steps == [*shell, *queries, *without]
    assert (world / "found.html").read_text(encoding="utf-8").count("data:image/jpeg;base64,") == 10


def test_text_conditions(world: Path) -> None:
    if not add_sentence_encoder(world):
        pytest.skip("the sentence encoder of the test extra is missing")
    steps = []
    for ran in run_page("docs/text_conditions.md", world):
        steps.append(ran.command[0] if ran.command else ran.heading)
        if steps[-1] == "Conditions by text, and their limits":
            assert ran.names["model"].condition_embedding.texts.shape == (2, 384)
        elif steps[-1] == "Add an attribute":
            assert ran.names["model"].config.attributes == ["colour", "closure", "heel height"]
            assert np.shape(ran.names["embeddings"]) == (1, 2, 32)
    assert steps == ["pip", "accelerate", "Conditions by text, and their limits", "Add an attribute"]
    from cca_hf import CCAModel

    assert CCAModel.from_pretrained(world / "out-with-heels").config.attributes[-1] == "heel height"


def test_losses(world: Path) -> None:
    pytest.importorskip("pytorch_metric_learning", reason='needs pip install "cca_hf[losses]"')
    weights = []
    for ran in run_page("docs/losses.md", world):
        if not ran.command:
            trainer = ran.names["trainer"]
            assert trainer.state.global_step > 0 and trainer.state.log_history[-1]["train_loss"] > 0
            weights.append(sum(weight.numel() for weight in trainer.loss.parameters()))
    assert weights == [0, (4 + 3 + 2) * 16]
    assert torch.load(next((world / "my-proxies").glob("checkpoint-*/attribute_losses.pt")), weights_only=True)


def test_adapters(world: Path) -> None:
    (ran,) = run_page("docs/recipe.md", world)
    assert ran.heading == "Adapters"
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {
        path.name for path in (world / "lora-run").iterdir()
    }
    from cca_hf import CCAModel

    images = [world / "query.jpg"]
    expected = ran.names["trainer"].unwrapped_model().eval().encode(images)
    assert CCAModel.from_pretrained(world / "lora-merged").encode(images) == pytest.approx(expected, abs=1e-4)
