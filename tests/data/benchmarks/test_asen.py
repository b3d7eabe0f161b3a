"""ASEN's split files: the real ones counted, and every way in which such files differ."""

import pytest

from cca_hf.data.benchmarks.asen import EVALUATION_SPLITS, AsenSplits

COUNTS = {"FashionAI": (3600, 14400), "DARN": (4293, 17168), "DeepFashion": (5525, 22100)}
FILES = {
    "filenames_valid.txt": b"a one.jpg\r\nb two.jpg\r\nc.jpg\r\n",
    "filenames_test.txt": b"d.jpg\ne.jpg",
    "query_valid.txt": b"2 0 1\r\r\n",
    "candidate_valid.txt": b"\xef\xbb\xbf1 0 2\r\n\r\n0 1 1\r\n1 1 0\r\n",
    "query_test.txt": b"0 0 0",
    "candidate_test.txt": b"1 0 0\n",
}


@pytest.mark.parametrize("name", list(COUNTS))
def test_real_files(asen, name):
    splits = AsenSplits(asen, name)
    rows = {split: splits.evaluation(split) for split in EVALUATION_SPLITS}
    query, gallery = COUNTS[name]
    assert [len(own.file_names) for own in rows.values()] == [query, gallery, query, gallery]
    for part in ("validation", "test"):
        held = [pairs for role in ("query", "gallery") for pairs in rows[f"{part}_{role}"].pairs]
        assert all(len(pairs) == 1 for pairs in held)
        shown = {pair for pairs in held for pair in pairs}
        assert {attribute for attribute, _ in shown} == set(range(len(splits.num_values)))
    names = {part: set(splits.file_names(part)) for part in ("valid", "test")}
    assert not names["valid"] & names["test"]
    assert splits.training() is None
    assert (splits.training_pairs() is not None) == (name == "FashionAI")


def test_line_ends_blanks_and_names_with_spaces(small_asen):
    splits = AsenSplits(small_asen("DARN", FILES), "DARN")
    assert splits.num_values == {"clothes color": 3, "sleeve length": 2}
    gallery = splits.evaluation("validation_gallery")
    assert gallery.file_names == ["b two.jpg", "a one.jpg"]  # in the order of the rows; fid counts from 0
    assert gallery.pairs == [[(0, 2), (1, 0)], [(1, 1)]]  # two lines of one image
    assert splits.evaluation("validation_query").file_names == ["c.jpg"]
    assert splits.evaluation("test_query").pairs == [[(0, 0)]]


def test_training_rows_with_several_attributes(small_asen):
    files = {"filenames_train.txt": "x.jpg\ny.jpg\n", "label_train.txt": "0 0 2 1 1\n1 1 0"}
    splits = AsenSplits(small_asen("DARN", FILES | files), "DARN")
    training = splits.training()
    assert training is not None
    assert (training.file_names, training.pairs) == (["x.jpg", "y.jpg"], [[(0, 2), (1, 1)], [(1, 0)]])


@pytest.mark.parametrize("content", ["0 0 3", "0 2 0", "0 0", "0", "0 0 1 1", "x 0 1", "0 -1 0", "0 0 1.0", "-1 0 0"])
def test_a_wrong_line_is_named(small_asen, content):
    splits = AsenSplits(small_asen("DARN", FILES | {"query_test.txt": f"0 0 0\n{content}\n"}), "DARN")
    with pytest.raises(ValueError, match=rf"query_test.txt, line 2: expected .* 3, 2 values; got '{content}'"):
        splits.evaluation("test_query")


def test_what_is_missing_is_named_with_its_source(small_asen, tmp_path):
    folder = small_asen("DARN", {name: content for name, content in FILES.items() if name != "candidate_test.txt"})
    with pytest.raises(FileNotFoundError, match=r"DARN/candidate_test.txt is missing; it comes with ASEN.*asenpp"):
        AsenSplits(folder, "DARN").evaluation("test_gallery")
    with pytest.raises(ValueError, match="query_test.txt, line 1: image 2, but filenames_test.txt has 2 names"):
        AsenSplits(small_asen("DARN", {"query_test.txt": "2 0 0"}), "DARN").evaluation("test_query")
    with pytest.raises(FileNotFoundError, match=r"meta.json is missing; .*github.com/Maryeon/asenpp"):
        AsenSplits(tmp_path, "DARN")
    with pytest.raises(ValueError, match="describes FashionAI, DARN, DeepFashion, not Zappos50K"):
        AsenSplits(folder, "Zappos50K")
