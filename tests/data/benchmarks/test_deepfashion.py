"""DeepFashion: the real split files against each other, and small files in the form of the original download."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cca_hf.data.benchmarks.asen import EVALUATION_SPLITS, AsenSplits
from cca_hf.data.benchmarks.deepfashion import ATTRIBUTES, load_deepfashion, read_values
from cca_hf.data.benchmarks.prepare import prepare_benchmark
from cca_hf.data.loading import load_attribute_dataset


def table(header: str, lines: list[str], end: str = "\n") -> bytes:
    return end.join([str(len(lines)), header, *lines]).encode()


@pytest.fixture(scope="module")
def anno(asen, tmp_path_factory) -> Path:
    """`list_attr_cloth.txt` with names of our own: the real types, which the split files tell of all thousand."""
    kinds: dict[int, int] = {}
    for part in ("valid", "test"):
        for line in (asen / "DeepFashion" / f"label_{part}.txt").read_text().splitlines():
            numbers = [int(word) for word in line.split()]
            kinds |= dict(zip(numbers[2::2], numbers[1::2], strict=True))
    assert sorted(kinds) == list(range(1000))
    folder = tmp_path_factory.mktemp("deepfashion")
    (folder / "Anno").mkdir()
    lines = [f"value {line}    {kinds[line]}" for line in range(1000)]
    (folder / "Anno" / "list_attr_cloth.txt").write_bytes(table("attribute_name  attribute_type", lines))
    return folder


def test_ranks_within_the_types_are_asens_values(anno, asen):
    """For 55,250 of 55,250 rows; on 46 % there are other values of the attribute, and they are kept."""
    names = read_values(anno / "Anno" / "list_attr_cloth.txt")
    assert [len(own) for own in names.attributes.values()] == list(AsenSplits(asen, "DeepFashion").num_values.values())
    benchmark = load_deepfashion(anno, asen)
    rows = several = 0
    for dataset in benchmark.splits.values():
        content = dataset.with_format("arrow")[:]
        for name in ATTRIBUTES:
            labels, all_values = content.column(name).to_numpy(), content.column(f"{name}_all").to_pylist()
            for row in np.flatnonzero(labels >= 0):
                assert labels[row] in all_values[row]
                rows += 1
                several += len(all_values[row]) > 1
    assert rows == 55_250 and round(several / rows, 4) == 0.4638


def test_prepare_load_train_evaluate(anno, asen, add_pictures, train_a_step_and_evaluate, tmp_path):
    splits = AsenSplits(asen, "DeepFashion")
    root = tmp_path / "root"
    root.mkdir()
    (root / "Anno_coarse").symlink_to(anno / "Anno")
    evaluated = {}
    for split in EVALUATION_SPLITS:
        own = splits.evaluation(split)
        frequent = {value for value, _ in Counter(pairs[0] for pairs in own.pairs).most_common(60)}
        evaluated[split] = {
            pairs[0]: name for name, pairs in zip(own.file_names, own.pairs, strict=True) if pairs[0] in frequent
        }
        add_pictures(root / "Img", evaluated[split].values())
    pairs_of_lines = read_values(anno / "Anno" / "list_attr_cloth.txt").pairs
    lines = {pair: line for line, pair in enumerate(pairs_of_lines)}
    trained = [[lines[a, v] for a in range(5)] for v in range(4) for _ in range(2)]
    names = [f"img/Some_Dress/img_{row:08d}.jpg" for row in range(len(trained))]
    add_pictures(root / "Img", names)
    flags = [
        f"{name}   {' '.join('1' if line in own else '-1' for line in range(1000))}"
        for name, own in zip(names, trained, strict=True)
    ]
    flags.append(f"{next(iter(evaluated['test_query'].values()))} {' '.join(['1'] * 1000)}")  # not for training
    (root / "Anno_coarse2").mkdir()
    (root / "Anno_coarse2" / "list_attr_img.txt").write_bytes(table("image_name  attribute_labels", flags))

    benchmark = load_deepfashion(root, asen)
    assert "Training images: 8 images with a value, outside ASEN's" in benchmark.remarks[0]
    prepare_benchmark(benchmark, tmp_path / "prepared")
    data = load_attribute_dataset(tmp_path / "prepared")
    assert list(data.attributes) == list(ATTRIBUTES) and data.attributes["texture"][0].startswith("value ")
    assert data["train"]["file_name"][:] == names
    found = len(data["test_query"]) + len(data["test_gallery"])
    result = train_a_step_and_evaluate(data)
    assert f"{found} of 27,625 images found" in result.table()
    assert "map_multi_label" in result.metrics()


VALUES = [
    "red plaid 1", "a-line       3", "striped  1", "cotton 2", "silk 2",
    "maxi 3", "v neck 4", "zip 4", "boho 5", "chic 5",
]  # fmt: skip
IMAGES = {
    "img/a/1.jpg": [0, 3],
    "img/a/2.jpg": [2, 0, 8],
    "img/b/3.jpg": [1],
    "img/b/4.jpg": [],
    "img/c/5.jpg": [9, 4],
}
PARTS = dict(zip(IMAGES, ("train", "train", "val", "train", "test"), strict=True))


@pytest.fixture
def small(tmp_path) -> Path:
    root = tmp_path / "small"
    flags = [
        f"{name} {' '.join('1' if line in own else '0' if line == 7 else '-1' for line in range(10))}"
        for name, own in IMAGES.items()
    ]
    partition = [f"{name}     {part}" for name, part in PARTS.items()]
    for path, content in {
        "Anno/list_attr_cloth.txt": table("attribute_name attribute_type", VALUES, "\r\n"),
        "Anno/list_attr_img.txt": table("image_name attribute_labels", flags) + b"\n",
        "Eval/list_eval_partition.txt": table("image_name evaluation_status", partition),
        "Anno_fine/list_attr_cloth.txt": table("other benchmark", ["floral 1"]),
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def test_the_original_splits(small):
    benchmark = load_deepfashion(small)
    assert {split: own["file_name"][:] for split, own in benchmark.splits.items()} == {
        "train": ["img/a/1.jpg", "img/a/2.jpg"],
        "validation": ["img/b/3.jpg"],
        "test": ["img/c/5.jpg"],
    }
    assert benchmark.splits["train"].features["texture"].names == ["red plaid", "striped"]
    assert benchmark.splits["train"].features["shape"].names == ["a-line", "maxi"]
    second = benchmark.splits["train"][1]
    # the first of its textures in the order of the file is the label, both are shown
    assert (second["texture"], second["texture_all"], second["style"], second["part"]) == (0, [0, 1], 0, -1)
    assert second["part_all"] == [] and benchmark.splits["test"][0]["fabric_all"] == [1]


def small_asen_files() -> dict[str, str]:
    return {
        "filenames_valid.txt": "img/b/3.jpg\nimg/b/3.jpg\n",
        "filenames_test.txt": "img/c/5.jpg\nimg/a/1.jpg",
        "query_valid.txt": "0 2 0",
        "candidate_valid.txt": "1 2 0",
        "query_test.txt": "0 1 1",
        "candidate_test.txt": "1 0 0",
        "label_valid.txt": "0\t3\t1\t\t\n1\t3\t1\t3\t5\t\r\n",
        "label_test.txt": "0\t5\t9\t2\t4\n1\t1\t0\t2\t3\n",
    }


def test_asens_splits(small, small_asen):
    """An image that the list names twice stays two rows, each with its own values."""
    folder = small_asen("DeepFashion", small_asen_files())
    benchmark = load_deepfashion(small, folder)
    assert benchmark.splits["train"]["file_name"][:] == ["img/a/2.jpg"]  # 1 is a test image, 4 shows nothing
    assert benchmark.splits["validation_query"]["shape_all"][:] == [[0]]
    assert benchmark.splits["validation_gallery"]["shape_all"][:] == [[0, 1]]
    query = benchmark.splits["test_query"][0]
    assert (query["fabric"], query["fabric_all"], query["style"], query["style_all"]) == (1, [1], -1, [1])

    (folder / "DeepFashion" / "label_test.txt").unlink()
    assert load_deepfashion(small, folder).splits["test_query"]["fabric_all"][:] == [None]
    files = {"filenames_train.txt": "img/x.jpg", "label_train.txt": "0 0 1 0 0 4 1"}
    training = load_deepfashion(small, small_asen("DeepFashion", files)).splits["train"][0]
    assert (training["file_name"], training["texture"], training["texture_all"]) == ("img/x.jpg", 1, [1, 0])
    for path in (small / "Anno" / "list_attr_img.txt", folder / "DeepFashion" / "filenames_train.txt"):
        path.unlink()
    benchmark = load_deepfashion(small, folder)
    assert "train" not in benchmark.splits and "There are no training images" in benchmark.remarks[0]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("Anno/list_attr_cloth.txt", table("h", ["red plaid 6"]), "line 3: expected '<name> <type 1-5>'"),
        ("Anno/list_attr_cloth.txt", table("h", VALUES)[:-4], "10' lines, but the file has 9|expected '<name> <type"),
        ("Anno/list_attr_img.txt", table("h", ["img/a/1.jpg 1 -1"]), "line 3: expected 10 numbers, got 2"),
        ("Eval/list_eval_partition.txt", table("h", ["img/a/1.jpg dev"]), "line 3: expected '<path> <train, val"),
        (
            "Eval/list_eval_partition.txt",
            b"7\nh\nimg/a/1.jpg train",
            "the first line says '7' lines, but the file has 1",
        ),
    ],
)
def test_a_wrong_line_is_named(small, file, content, message):
    (small / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_deepfashion(small)


def test_files_that_contradict_each_other(small, small_asen):
    files = small_asen_files()
    with pytest.raises(ValueError, match="query_test.txt and label_test.txt contradict each other on image 0"):
        load_deepfashion(small, small_asen("DeepFashion", files | {"query_test.txt": "0 1 0"}))
    with pytest.raises(
        ValueError, match=r"label_valid.txt, line 1: expected 'fid \(type id\)\*', .*types are not those"
    ):
        load_deepfashion(small, small_asen("DeepFashion", files | {"label_valid.txt": "0\t2\t1"}))
    (small / "Anno" / "list_attr_cloth.txt").write_bytes(table("h", VALUES[:-1]))
    with pytest.raises(ValueError, match=r"ASEN's meta.json has \[2, 2, 2, 2, 2\] values, .* \[2, 2, 2, 2, 1\]"):
        load_deepfashion(small, small_asen("DeepFashion", {}))


@pytest.mark.parametrize("file", ["list_attr_cloth.txt", "list_attr_img.txt", "list_eval_partition.txt"])
def test_what_is_missing_is_named(small, file):
    for path in small.rglob(file):
        if path.parent.name != "Anno_fine":
            path.unlink()
    with pytest.raises(FileNotFoundError, match=f"no {file} in .* it comes with DeepFashion.*mmlab.ie.cuhk"):
        load_deepfashion(small)
