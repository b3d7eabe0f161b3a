"""Market-1501, DukeMTMC-reID, MSMT17 and VeRi-776 in the form of the original files, with few images of our own."""

from pathlib import Path

import pytest

from cca_hf.cli.main import main
from cca_hf.data.benchmarks.market1501 import load_dukemtmc, load_market1501
from cca_hf.data.benchmarks.msmt17 import load_msmt17
from cca_hf.data.benchmarks.veri776 import load_veri776
from cca_hf.data.reidentification import load_reidentification

MARKET = [
    *(f"bounding_box_train/{person:04}_c{camera}s1_00{number}_01.jpg" for person in (2, 7, 11) for camera in (1, 2)
      for number in range(4)),
    "query/0001_c1s1_001051_00.jpg",
    "query/0003_c2s1_001051_00.jpg",
    "bounding_box_test/0001_c1s1_001052_00.jpg",
    "bounding_box_test/0001_c3s1_001053_00.jpg",
    "bounding_box_test/0003_c1s1_001053_00.jpg",
    "bounding_box_test/0000_c1s1_000151_01.jpg",
    "bounding_box_test/-1_c1s1_000401_03.jpg",
]  # fmt: skip


@pytest.fixture
def market(tmp_path, add_pictures) -> Path:
    root = tmp_path / "Market-1501-v15.09.15"
    add_pictures(root, MARKET)
    (root / "query" / "Thumbs.db").write_bytes(b"\0")
    return root


def test_market_is_prepared_and_searched(market, tmp_path, capsys) -> None:
    output = tmp_path / "market"
    assert main(["data", "prepare", "market1501", "--root", str(market.parent), "--output", str(output)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train: 24 images",
        "test_query: 2 images",
        "test_gallery: 4 images",
        "1 images of the identity -1 (bad boxes) are left out, as in the protocol.",
        f"written: {output}",
    ]
    data = load_reidentification(output, "identity", "camera")
    assert data.images.attributes["identity"] == ["0000", "0001", "0002", "0003", "0007", "0011"]
    search = data.search("test")
    assert search.is_query.tolist() == [True, True, False, False, False, False]
    assert search.identities.tolist() == [1, 3, 0, 1, 1, 3] and search.cameras.tolist() == [0, 1, 0, 0, 2, 0]
    assert data.images.cut_splits and len(data.search("validation").cameras) == 8  # one person of the three


def test_duke_and_veri(tmp_path, add_pictures) -> None:
    add_pictures(tmp_path / "duke", ["bounding_box_train/0001_c2_f0046182.jpg", "query/0005_c2_f0046985.jpg"])
    add_pictures(tmp_path / "duke", ["bounding_box_test/0005_c8_f0046985.jpg"])
    duke = load_dukemtmc(tmp_path / "duke")
    assert duke.splits["test_gallery"][0]["camera"] == 1 and duke.splits["test_gallery"].features["camera"].names == [
        "2",
        "8",
    ]
    names = ["image_train/0001_c001_00016450_0.jpg", "image_query/0002_c002_00030600_0.jpg"]
    add_pictures(tmp_path / "VeRi", [*names, "image_test/0002_c014_00030605_1.png"])
    veri = load_veri776(tmp_path)
    row = veri.splits["test_gallery"][0]
    assert row["file_name"] == "VeRi/image_test/0002_c014_00030605_1.png" and row["image"] is not None
    assert veri.splits["test_query"].features["camera"].names == ["1", "2", "14"]


def test_persons_of_msmt17_are_numbered_twice(tmp_path, add_pictures) -> None:
    root = tmp_path / "MSMT17_V1"
    lists = {
        "train": ["0000/0000_000_01_0303morning_0015_0.jpg 0", "0001/0001_000_15_0303noon_0015_0.jpg 1"],
        "val": ["0000/0000_001_02_0303morning_0020_0.jpg 0"],
        "query": ["0000/0000_000_01_0303morning_0008_0.jpg 0"],
        "gallery": ["0000/0000_001_04_0303morning_0009_0.jpg 0"],
    }
    for name, lines in lists.items():
        folder = "train" if name in ("train", "val") else "test"
        add_pictures(root / folder, [line.split()[0] for line in lines])
        (root / f"list_{name}.txt").write_text("\n".join(lines) + "\n")
    loaded = load_msmt17(tmp_path)
    assert {split: rows.num_rows for split, rows in loaded.splits.items()} == {
        "train": 3,
        "test_query": 1,
        "test_gallery": 1,
    }
    features = loaded.splits["train"].features
    assert features["identity"].names == ["0000", "0001", "test_0000"] and features["camera"].names[-1] == "15"
    assert loaded.splits["train"][2]["file_name"] == f"MSMT17_V1/train/{lists['val'][0].split()[0]}"
    (root / "list_query.txt").write_text("0000/0000.jpg 0\n")
    with pytest.raises(
        ValueError, match=r"list_query.txt, line 1: expected '0000/0000_000_01_.*got '0000/0000.jpg 0'"
    ):
        load_msmt17(tmp_path)


def test_folders_that_are_not_those_of_the_benchmark(market, tmp_path, add_pictures) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder image_train in .*; it comes with VeRi-776"):
        load_veri776(market)
    with pytest.raises(FileNotFoundError, match="no list_train.txt"):
        load_msmt17(market)
    add_pictures(market, ["query/portrait.jpg"])
    with pytest.raises(ValueError, match=r"query/portrait.jpg: expected a name such as 0002_c1s1_000451_03.jpg"):
        load_market1501(market)
