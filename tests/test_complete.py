"""`cca complete` as it is typed: from a data set and from an index, with a board; on drawn items."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from transformers import ViTConfig

from cca_hf.cli.main import main
from cca_hf.data.outfit_loading import load_items, load_outfits
from cca_hf.data.shapes import generate_shapes_dataset
from cca_hf.evaluation.outfits import evaluate_outfits, pair_distance, pooled_features, similarity
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.models.modeling_outfit import OutfitModel
from cca_hf.visualization.outfits import boards_of_questions, write_boards

from .pages import run_page

CATEGORIES = ["circle", "heart", "square"]
ITEMS = 30


def tiny_vit() -> ViTConfig:
    return ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """`rooms`, a data set of 30 items with text ids, and `out`, a model of outfits."""
    folder = tmp_path_factory.mktemp("world")
    rows = generate_shapes_dataset(100, image_size=32)["train"].select(range(ITEMS)).select_columns(["image"])
    kinds = [row % 3 for row in range(ITEMS)]
    rows = rows.add_column("kind", kinds, feature=ClassLabel(names=CATEGORIES))
    rows = rows.add_column("sku", [f"s{row}" for row in range(ITEMS)])
    (folder / "rooms").mkdir()
    rows.to_parquet(folder / "rooms" / "train-00000-of-00001.parquet")
    torch.manual_seed(0)
    OutfitModel.from_backbone(tiny_vit(), [*CATEGORIES, "star"], embedding_dim=8).save_pretrained(folder / "out")
    return folder


@pytest.fixture(scope="module")
def expected(world) -> list[tuple[str, float]]:
    """The hearts beside s0 (a circle) and s2 (a square), by the model itself."""
    model = OutfitModel.from_pretrained(world / "out")
    data = load_items(str(world / "rooms"), id_column="sku", category_column="kind")
    hearts = [row for row in range(ITEMS) if row % 3 == 1]
    images = data.items["image"]
    found = model.complete(
        [images[0], images[2]], ["circle", "square"], [images[row] for row in hearts], ["heart"] * len(hearts), top_k=4
    )
    return [(f"s{hearts[place]}", distance) for place, distance in found]


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(["complete", *words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_from_a_data_set_with_a_board(world, expected, tmp_path, capsys):
    place = ["--dataset", str(world / "rooms"), "--model", str(world / "out")]
    columns = ["--id_column", "sku", "--category_column", "kind"]
    page = tmp_path / "board.html"
    code, out, err = run(
        capsys, *place, *columns, "--items", "s0", "s2", "--category", "heart", "--top", "4", "--html", str(page)
    )
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split() == ["item", "category", "distance"] and lines[-1] == f"page: {page}"
    assert [line.split() for line in lines[2:-1]] == [[item, "heart", f"{far:.3f}"] for item, far in expected]
    html = page.read_text(encoding="utf-8")
    assert html.count("data:image/jpeg;base64,") == 6 and '<div class="blank">heart</div>' in html
    assert re.findall(r"<figcaption>(s\d+)", html) == [item for item, _ in expected]


def test_from_an_index(world, expected, tmp_path, capsys):
    pytest.importorskip("lancedb", reason='the index needs LanceDB: pip install "cca_hf[search]"')
    store = str(tmp_path / "rooms.index")
    words = ["index", "--model", str(world / "out"), "--dataset", str(world / "rooms"), "--split", "train"]
    assert main([*words, "--id_column", "sku", "--store", store]) == 0
    made = capsys.readouterr().out
    assert f"{store}: 30 items, each with one embedding for outfit" in made
    assert re.search(rf"next: cca complete --store {store} --items s\d+", made)
    Dataset.from_parquet(str(world / "rooms" / "train-00000-of-00001.parquet"))[4]["image"].save(tmp_path / "s4.png")
    assert main(["search", "--store", store, "--image", str(tmp_path / "s4.png"), "--top", "2", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)  # the similarity of the features, without a category
    assert answer["attribute"] == "outfit" and answer["found"][0]["item_id"] == "s4"
    assert answer["found"][0]["similarity"] == pytest.approx(1, abs=1e-4) and len(answer["found"]) == 2
    search = ["--store", store, "--category_column", "kind", "--json"]
    code, out, err = run(capsys, *search, "--items", "s0", "s2", "--category", "heart", "--top", "4")
    assert code == 0, err
    found = json.loads(out)
    assert [row["item"] for row in found] == [item for item, _ in expected]
    assert [row["distance"] for row in found] == pytest.approx([far for _, far in expected], abs=1e-4)
    page = tmp_path / "board.html"
    code, out, _ = run(capsys, *search, "--items", "s0", "--html", str(page))  # of all categories
    categories = {row["category"] for row in json.loads(out)}
    assert code == 0 and len(json.loads(out)) == 10 and categories <= set(CATEGORIES)
    assert page.read_text(encoding="utf-8").count("data:image/jpeg;base64,") == 11

    for given, message in [
        (["--items", "s99"], "the index has no item 's99'"),
        (["--items", "s0", "--category", "hart"], "unknown category 'hart'. Did you mean 'heart'?"),
        (
            ["--items", "s0", "--category", "star"],
            "there is no item of the category 'star' beside those of the outfit",
        ),
    ]:
        code, _, err = run(capsys, *search, *given)
        assert code == 1 and message in err
    code, _, err = run(capsys, "--store", store, "--items", "s0")
    assert code == 1 and "the index has no column 'category'" in err and "--category_column" in err
    OutfitModel.from_backbone(tiny_vit(), CATEGORIES).save_pretrained(tmp_path / "other")
    code, _, err = run(capsys, *search, "--items", "s0", "--model", str(tmp_path / "other"))
    assert code == 1 and "they cannot be compared with embeddings of" in err


def test_wrong_command_lines(world, tmp_path, capsys):
    for words, message in [
        (["--items", "s0"], "give either --store, an index, or --dataset"),
        (["--items", "s0", "--dataset", "rooms"], "--dataset needs the --model that encodes its images"),
    ]:
        code, _, err = run(capsys, *words)
        assert code == 2 and message in err
    CCAModel.from_backbone(tiny_vit(), ["colour"]).save_pretrained(tmp_path / "cca")
    code, _, err = run(capsys, "--items", "s0", "--dataset", "rooms", "--model", str(tmp_path / "cca"))
    assert code == 1 and "is a model of CCA, not of outfits: 'cca train outfits' makes one" in err
    place = ["--dataset", str(world / "rooms"), "--model", str(world / "out")]
    code, _, err = run(capsys, *place, "--items", "s0", "--category_column", "kind")
    assert code == 1 and "the items: no column 'id'" in err
    code, _, err = run(capsys, *place, "--items", "s77", "--category_column", "kind", "--id_column", "sku")
    assert code == 1 and "no item 's77'; did you mean 's7'?" in err


def test_the_page(world, tmp_path):
    pytest.importorskip("lancedb", reason='the index needs LanceDB: pip install "cca_hf[search]"')
    rows = Dataset.from_parquet(str(world / "rooms" / "train-00000-of-00001.parquet"))
    (tmp_path / "rooms").mkdir()
    rows.rename_columns({"sku": "id", "kind": "category"}).to_parquet(tmp_path / "rooms" / "train.parquet")
    (tmp_path / "out").symlink_to(world / "out")
    outfits = [f"{first},s{first + place}" for first in range(ITEMS - 2) for place in range(3)]
    (tmp_path / "outfits.csv").write_text("\n".join(["outfit_id,item_id", *outfits]))
    steps = []
    for ran in run_page("docs/outfits.md", tmp_path):
        steps.append(" ".join(ran.command[:2]) or ran.heading)
        if ran.heading == "Data":
            assert ran.printed.startswith("OutfitDataset: 30 items in 3 categories\n  train: 22 outfits\n")
        elif ran.heading == "Evaluate":
            assert "compatibility AUC" in ran.printed and "recall at 10" in ran.printed
        elif ran.command[:2] == ["cca", "complete"]:
            assert ran.printed.count("heart") == 10
    assert steps == ["Data", "cca complete", "cca index", "cca complete", "Evaluate"]
    assert (tmp_path / "board.html").is_file() and (tmp_path / "boards.html").is_file()


def test_boards_of_questions_in_a_browser(world, tmp_path, browser):
    outfits = {"test": [[f"s{row}", f"s{row + 1}", f"s{row + 2}"] for row in range(0, ITEMS, 3)]}
    data = load_outfits(str(world / "rooms"), outfits, id_column="sku", category_column="kind")
    model = OutfitModel.from_pretrained(world / "out")
    features = model.features(data.items["image"])
    distance = pair_distance(features, data.category_ids, model.all_pair_weights())
    kinds = [data.categories[place] for place in data.category_ids]
    rows = np.arange(5, ITEMS)
    np.testing.assert_allclose(  # the evaluation measures what the model uses
        distance(np.array([0, 2]), rows),
        model.distances(features[[0, 2]], [kinds[0], kinds[2]], features[rows], [kinds[row] for row in rows]),
        atol=1e-5,
    )
    pooled = pooled_features(model, data.items["image"], batch_size=8)
    assert pooled.shape == (ITEMS, 16)
    assert evaluate_outfits(data, "test", similarity(pooled)).figures["compatibility_auc"].count == 20
    boards = boards_of_questions(data, "test", distance, count=4, top=5)
    assert len({frozenset(tile.name for tile in board.given) for board in boards}) == 4
    for board in boards:
        places = [int(tile.caption) for tile in board.proposals]
        (right,) = (int(tile.caption) for tile in board.proposals if tile.right)
        assert places == [1, 2, 3, 4, 5] + [right] * (right > 5)
        assert f"in place {right} of" in board.note
    page = write_boards(boards, tmp_path / "boards.html", facts={"split": "test"})
    for width, columns in ((1280, 5), (390, 4)):
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.goto(page.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        lefts = tab.evaluate(
            "[...document.querySelector('.proposals').children].map(e => e.getBoundingClientRect().left)"
        )
        assert len(set(lefts)) == columns
        assert tab.locator(".right img").count() == len(boards)
