"""What `cca data prepare` writes: shards, nulls, paths, features and the folder as a whole."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, DatasetDict, Image, List, load_dataset

from cca_hf.cli.main import main
from cca_hf.data.benchmarks.annotations import Annotations, Benchmark, to_dataset
from cca_hf.data.benchmarks.prepare import prepare_benchmark
from cca_hf.data.coverage import Coverage
from cca_hf.data.loading import load_attribute_dataset

ATTRIBUTES = {"colour": ["red", "blue"], "shape": ["round", "square", "long"]}


@pytest.fixture
def benchmark(tmp_path, add_pictures) -> Benchmark:
    """30 and 12 images; of the latter two are missing, one is an empty file and one a folder."""
    root = tmp_path / "root"
    splits = DatasetDict()
    for split, number in (("train", 30), ("test_query", 12), ("test_gallery", 12)):
        names = [f"{split}/a b/{row}.jpg" for row in range(number)]
        add_pictures(root, names if split == "train" else names[:-4])
        if split != "train":
            (root / names[-1]).mkdir()
            (root / names[-2]).touch()
        pairs = [[(0, row % 2)] if row % 3 else [(1, row // 3 % 3), (0, 1)] for row in range(number)]
        maybe = [None if row == 4 else [(0, 1), (1, 2)][: row % 3] for row in range(number)]
        splits[split] = to_dataset(Annotations(names, pairs, maybe=maybe), ATTRIBUTES, root)
    return Benchmark("Test", "nowhere", splits, ["A remark."])


@pytest.mark.parametrize("with_images", [True, False])
def test_read_back(benchmark, tmp_path, with_images, monkeypatch):
    output = tmp_path / "new" / "prepared"
    coverage = prepare_benchmark(benchmark, output, with_images=with_images)
    assert coverage["train"] == Coverage(30, 30) and coverage["test_query"] == Coverage(8, 12)
    raw = load_dataset(str(output))
    assert list(raw) == list(benchmark.splits)
    for split, given in benchmark.splits.items():
        read = raw[split].cast_column("image", Image(decode=False))
        assert raw[split].features == given.features  # the pictures decode, the names of all values are there
        columns = [name for name in given.column_names if name != "image"]
        assert read.select_columns(columns)[:] == given.select_columns(columns)[:]
        paths = given.with_format("arrow")["image"].to_pylist()
        for picture, told in zip(read["image"], paths, strict=True):
            if told is None:
                assert picture is None
            elif with_images:
                assert picture == {"bytes": Path(told["path"]).read_bytes(), "path": Path(told["path"]).name}
            else:
                assert picture == told == {"bytes": None, "path": os.path.abspath(told["path"])}
    if not with_images:  # the paths lead to another folder
        with pytest.raises(ValueError, match="names the file '.*', which is not in .*CCA_TRUST_DATA=1, or"):
            load_attribute_dataset(output)
        monkeypatch.setenv("CCA_TRUST_DATA", "1")
    data = load_attribute_dataset(output)
    assert data.attributes == ATTRIBUTES and data.coverage["test_gallery"] == Coverage(8, 12)
    assert data["train"].features["shape_maybe"] == List(ClassLabel(names=ATTRIBUTES["shape"]))
    assert data.check_images() is data
    card = (output / "README.md").read_text()
    assert "| test_query | 12 | 8 |" in card and "**A subset**" in card and "A remark." in card
    assert ("keep this data set private" in card) == with_images


def test_shards(benchmark, tmp_path):
    """Some of about the size asked for, each of row groups that are read on their own."""
    output = tmp_path / "prepared"
    total = sum(path.stat().st_size for path in (tmp_path / "root" / "train").rglob("*.jpg"))
    prepare_benchmark(benchmark, output, shard_bytes=total // 5 + 1)
    files = sorted((output / "data").glob("train-*"))
    assert [file.name[:21] for file in files] == [f"train-{shard:05d}-of-00005-" for shard in range(5)]
    assert [pq.read_metadata(file).num_rows for file in files] == [6] * 5
    assert load_dataset(str(output))["train"]["file_name"][:] == benchmark.splits["train"]["file_name"][:]
    small = tmp_path / "small"
    prepare_benchmark(benchmark, small, shard_bytes=1)  # no more files than rows
    assert len(list((small / "data").glob("test_query-*"))) == 12
    assert load_attribute_dataset(small).coverage["test_query"] == Coverage(8, 12)


def test_from_the_hub(benchmark, tmp_path, repository, warm_torch):
    """As it was pushed: the splits, the names of the values, and how much is missing."""
    prepare_benchmark(benchmark, tmp_path / "prepared")
    script = repository / "tests" / "data" / "load_from_fake_hub.py"
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(repository / "src")}
    done = warm_torch.run(script, tmp_path / "prepared", *ATTRIBUTES, env=environment, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].endswith("test_query 8, test_gallery 8") and lines[1] == str(ATTRIBUTES)
    told = "8 of 12 images found; results are for a subset"
    assert lines[-1] == str({"test_query": told, "test_gallery": told})


def test_the_same_folder_prepared_again(benchmark, tmp_path, add_pictures):
    """`datasets` has a cache, which must not answer with what the folder held before."""
    output = tmp_path / "prepared"
    prepare_benchmark(benchmark, output)
    assert load_attribute_dataset(output).coverage["test_query"] == Coverage(8, 12)
    shutil.rmtree(output)
    name = benchmark.splits["test_query"]["file_name"][8]
    add_pictures(tmp_path / "root", [name])
    rows = Annotations(benchmark.splits["test_query"]["file_name"][:], [[(0, 0), (1, 1)], [(0, 1), (1, 2)]] * 6)
    splits = benchmark.splits | {"test_query": to_dataset(rows, ATTRIBUTES, tmp_path / "root")}
    prepare_benchmark(replace(benchmark, splits=DatasetDict(splits)), output)
    data = load_attribute_dataset(output)
    assert data.coverage["test_query"] == Coverage(9, 12)
    assert data.labels("test_query")[:2].tolist() == [[0, 1], [1, 2]]


def test_memory_does_not_grow_with_the_pictures(tmp_path, warm_python):
    """2,000 pictures of 100 KB: 200 MB pass through a process that grows by a fraction of it."""
    script = f"""
import resource
from pathlib import Path
from datasets import DatasetDict, disable_progress_bars
from cca_hf.data.benchmarks.annotations import Annotations, Benchmark, to_dataset
from cca_hf.data.benchmarks.prepare import prepare_benchmark
disable_progress_bars()
root = Path({str(tmp_path)!r})
names = [f"{{row}}.jpg" for row in range(2000)]
(root / names[0]).write_bytes(b"x" * 100_000)
for name in names[1:]:
    (root / name).hardlink_to(root / names[0])
rows = Annotations(names, [[(0, row % 2)] for row in range(2000)])
benchmark = Benchmark("Test", "nowhere", DatasetDict(train=to_dataset(rows, {{"colour": ["red", "blue"]}}, root)))
prepare_benchmark(benchmark, root / "warm", with_images=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare_benchmark(benchmark, root / "prepared", shard_bytes=100_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = warm_python.run("-c", script, check=True)
    assert int(done.stdout) < 100_000  # KB
    assert len(list((tmp_path / "prepared" / "data").glob("*.parquet"))) == 2


def test_an_existing_folder_is_not_touched(benchmark, tmp_path):
    output = tmp_path / "prepared"
    output.mkdir()
    prepare_benchmark(benchmark, output)  # empty: fine
    content = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    with pytest.raises(FileExistsError, match="prepared exists already; choose a new folder"):
        prepare_benchmark(benchmark, output)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == content


def test_whole_or_not_at_all(benchmark, tmp_path):
    """A picture that vanishes on the way leaves nothing that could be taken for a data set."""
    gone = tmp_path / "root" / "test_gallery" / "a b" / "3.jpg"
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(FileNotFoundError, match="3.jpg"):
        prepare_benchmark(benchmark, tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()
    gone.write_bytes(content)
    prepare_benchmark(benchmark, tmp_path / "prepared")
    assert not (tmp_path / "prepared.unfinished").exists()
    assert load_attribute_dataset(tmp_path / "prepared").coverage["test_query"] == Coverage(8, 12)


def test_a_folder_of_the_user_is_not_removed(benchmark, tmp_path):
    mine = tmp_path / "prepared.unfinished"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="prepared.unfinished exists, and is not an unfinished data set"):
        prepare_benchmark(benchmark, tmp_path / "prepared")
    assert (mine / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../secret.jpg"])
def test_split_files_name_files_of_the_benchmark(tmp_path, name, monkeypatch):
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    annotations = Annotations(["a.jpg", name], [[(0, 0)], [(0, 1)]])
    with pytest.raises(ValueError, match=f"'{name}' leads out of .*root; if you trust the data, set CCA_TRUST_DATA=1"):
        to_dataset(annotations, {"shape": ["round", "long"]}, tmp_path / "root")
    monkeypatch.setenv("CCA_TRUST_DATA", "1")
    assert to_dataset(annotations, {"shape": ["round", "long"]}, tmp_path / "root")["file_name"][1] == name


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["data"], 2, "cca data: error: Missing command."),
        (["data", "prepare", "fashion", "--root", "a", "--output", "b"], 2, "'fashion' is not one of 'fashionai', "),
        (["data", "prepare", "darn", "--root", "a"], 2, "Missing option '--output'"),
        (["data", "prepare", "darn", "--root", "a", "--output", "b", "--seed", "1"], 2, "--seed is not for darn"),
        (["data", "prepare", "darn", "--root", "a", "--output", "b", "--triplets", "none"], 2, "is not for darn"),
        (["data", "prepare", "zappos50k", "--root", "a", "--output", "b", "--asen_splits", "c"], 2, "is not for zapp"),
        (["data", "prepare", "fashionai", "--root", "/no/such", "--output", "b"], 1, "there is no folder /no/such"),
        (["data", "download", "darn", "--urls", "/no/such", "--output", "b"], 1, "/no/such is missing; it comes"),
    ],
)  # fmt: skip
def test_errors_are_one_line(words, code, message, capsys):
    assert main(words) == code
    printed, said = capsys.readouterr()
    assert printed == "" and message in said
    assert len([line for line in said.splitlines() if re.match("cca.*error:", line)]) == 1


@pytest.mark.parametrize("command", ["prepare", "download"])
def test_help_shows_what_to_type(command, capsys):
    assert main(["data", command, "--help"]) == 0
    assert f"  cca data {command} " in capsys.readouterr().out
