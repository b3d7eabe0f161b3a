"""DARN: ASEN's files are all there is of its labels."""

import pytest

from cca_hf.data.benchmarks.asen import EVALUATION_SPLITS, AsenSplits, load_darn
from cca_hf.data.benchmarks.prepare import prepare_benchmark
from cca_hf.data.loading import load_attribute_dataset

NAMES = [
    "clothes_category", "clothes_button", "clothes_color", "clothes_length", "clothes_pattern", "clothes_shape",
    "collar_shape", "sleeve_length", "sleeve_shape",
]  # fmt: skip


def test_prepare_load_train_evaluate(asen, beside_real_asen, add_pictures, train_a_step_and_evaluate, tmp_path):
    """The real queries and galleries; training rows, which nobody passed on, stand in with two values each."""
    pairs = [(attribute, value) for attribute in range(len(NAMES)) for value in (0, 1)] * 2
    rows = [f"{fid} {attribute} {value}" for fid, (attribute, value) in enumerate(pairs)]
    names = [f"pic/item {fid // 2}/{fid}.jpg" for fid in range(len(rows))]
    folder = beside_real_asen("DARN", {"filenames_train.txt": "\n".join(names), "label_train.txt": "\n".join(rows)})
    splits = AsenSplits(asen, "DARN")
    root = tmp_path / "darn"
    add_pictures(root, names)
    found = {}
    for split in EVALUATION_SPLITS:
        own = splits.evaluation(split)
        of_value = {pairs[0]: name for name, pairs in zip(own.file_names, own.pairs, strict=True) if pairs[0][1] < 2}
        add_pictures(root, of_value.values())
        found[split] = len(of_value)
    benchmark = load_darn(root, folder)
    prepare_benchmark(benchmark, tmp_path / "prepared")
    data = load_attribute_dataset(tmp_path / "prepared")
    assert {name: len(values) for name, values in data.attributes.items()} == dict(
        zip(NAMES, (20, 13, 55, 7, 28, 11, 26, 8, 17), strict=True)
    )
    assert {split: len(own) for split, own in data.splits.items()} == {"train": 36, **found}
    assert "train" not in data.coverage and data.coverage_of("test_query", "test_gallery").listed == 21_461
    result = train_a_step_and_evaluate(data)
    assert f"{found['test_query'] + found['test_gallery']} of 21,461 images found" in result.table()


def test_without_training_images_the_rest_is_read(asen, tmp_path):
    benchmark = load_darn(tmp_path, asen)
    assert list(benchmark.splits) == list(EVALUATION_SPLITS)
    assert [len(own) for own in benchmark.splits.values()] == [4293, 17168, 4293, 17168]
    assert "There are no training images: filenames_train.txt or label_train.txt is missing." in benchmark.remarks
    with pytest.raises(FileNotFoundError, match="all 42,922 images of DARN are missing, such as pic/.*darn_url"):
        prepare_benchmark(benchmark, tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()


def test_it_needs_asens_files(tmp_path):
    with pytest.raises(ValueError, match="the labels of DARN are in ASEN's split files"):
        load_darn(tmp_path, None)
