"""CUB-200-2011, Stanford Cars and FGVC-Aircraft in the form of the original files, with few images of our own."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from cca_hf.cli.main import main
from cca_hf.data.benchmarks.aircraft import load_aircraft
from cca_hf.data.benchmarks.cars import load_cars
from cca_hf.data.benchmarks.cub200 import load_cub200
from cca_hf.data.benchmarks.fine_grained import Image, cut_validation
from cca_hf.data.loading import load_attribute_dataset

# image, path, class, whether it is a training image: 10 training and 2 test images of each class
BIRDS = [
    (str(1 + 12 * place + number), f"{species}/{species[4:]}_{number:04d}.jpg", str(place + 1), int(number < 10))
    for place, species in enumerate(["001.Black_footed_Albatross", "002.Le_Conte_Sparrow"])
    for number in range(12)
]
VARIANTS = {"707-320": ("Boeing 707", "Boeing"), "Cessna 172": ("Cessna 172", "Cessna")}
VARIANTS["F/A-18"] = ("F/A-18", "Boeing")
# image -> part, variant
PLANES = {
    "1025794": ("train", "707-320"),
    "0034309": ("train", "F/A-18"),
    "1340192": ("train", "Cessna 172"),
    "0056978": ("val", "Cessna 172"),
    "0698580": ("test", "F/A-18"),
    "0450014": ("test", "707-320"),
}
CARS = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]
BOX = {"bbox_x1": 39, "bbox_y1": 116, "bbox_x2": 569, "bbox_y2": 375}


@pytest.fixture
def birds(tmp_path, add_pictures) -> Path:
    folder = tmp_path / "CUB_200_2011"
    folder.mkdir()
    files = {
        "images.txt": [f"{image} {path}" for image, path, _, _ in BIRDS],
        "image_class_labels.txt": [f"{image} {label}" for image, _, label, _ in BIRDS],
        "train_test_split.txt": [f"{image} {part}" for image, _, _, part in BIRDS],
        "classes.txt": ["1 001.Black_footed_Albatross", "2 002.Le_Conte_Sparrow"],
    }
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    add_pictures(folder / "images", [path for _, path, _, _ in BIRDS])
    return folder


@pytest.fixture
def planes(tmp_path, add_pictures) -> Path:
    folder = tmp_path / "fgvc-aircraft-2013b" / "data"
    folder.mkdir(parents=True)
    levels = {"variant": lambda name: name, "family": lambda name: VARIANTS[name][0]}
    levels["manufacturer"] = lambda name: VARIANTS[name][1]
    for (word, value), file in zip(levels.items(), ("variants", "families", "manufacturers"), strict=True):
        (folder / f"{file}.txt").write_text("\n".join(sorted({value(name) for name in VARIANTS})) + "\n")
        for part in ("train", "val", "test"):
            lines = [f"{image} {value(name)}\n" for image, (its, name) in PLANES.items() if its == part]
            (folder / f"images_{word}_{part}.txt").write_text("".join(lines))
    add_pictures(folder / "images", [f"{image}.jpg" for image in PLANES])
    return folder.parent


def annotations(rows: list[dict[str, object]]) -> np.ndarray:
    """A struct array of Matlab, 1 x rows, as in the published files."""
    array = np.zeros((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for place, row in enumerate(rows):
        array[0, place] = tuple(row.values())
    return array


def write_cars(folder: Path, num_test: int = 2) -> None:
    """The devkit: 10 training images of each class."""
    devkit = folder / "devkit"
    devkit.mkdir(parents=True)
    train = [BOX | {"class": 1 + number % 2, "fname": f"{number + 1:05d}.jpg"} for number in range(20)]
    test = [BOX | {"class": 2 - number % 2, "fname": f"{number + 1:05d}.jpg"} for number in range(num_test)]
    savemat(devkit / "cars_meta.mat", {"class_names": np.array([CARS], dtype=object)})
    savemat(devkit / "cars_train_annos.mat", {"annotations": annotations(train)})
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": annotations(test)})


def test_cub_200_prepared_and_loaded(birds, tmp_path, capsys):
    """The root may also be the folder that contains CUB_200_2011."""
    assert main(["data", "prepare", "cub200", "--root", str(birds.parent), "--output", str(tmp_path / "cub")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train: 18 images",
        "validation: 2 images",
        "test: 4 images",
        "The validation split is a tenth of the training images of each class (seed 0); the benchmark has none.",
        f"written: {tmp_path / 'cub'}",
    ]
    data = load_attribute_dataset(tmp_path / "cub")
    assert data.attributes == {"label": ["Black footed Albatross", "Le Conte Sparrow"]} and not data.cut_splits
    rows = {
        split: list(zip(part["file_name"][:], part["label"][:], strict=True)) for split, part in data.splits.items()
    }
    given = {f"images/{path}": (int(label) - 1, part) for _, path, label, part in BIRDS}
    assert rows["test"] == [(name, label) for name, (label, part) in given.items() if not part]
    training = [(name, label) for name, (label, part) in given.items() if part]
    assert sorted(rows["train"] + rows["validation"]) == training
    assert [label for _, label in rows["validation"]] == [0, 1]


def test_aircraft_with_family_and_manufacturer(planes, tmp_path, capsys):
    (planes / "data" / "images" / "0450014.jpg").unlink()
    assert main(["data", "prepare", "aircraft", "--root", str(planes), "--output", str(tmp_path / "aircraft")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == [
        "train: 3 images",
        "validation: 1 images",
        "test: 1 of 2 images found; results are for a subset",
    ]
    assert "The lowest 20 rows of an image show its source" in printed[3]
    benchmark = load_aircraft(planes)
    features = benchmark.splits["train"].features
    names = {column: features[column].names for column in ("label", "family", "manufacturer")}
    assert names["label"] == ["707-320", "Cessna 172", "F/A-18"] and names["manufacturer"] == ["Boeing", "Cessna"]
    for split, part in {"train": "train", "validation": "val", "test": "test"}.items():
        rows = benchmark.splits[split].remove_columns("image").to_list()
        expected = [image for image, (its, _) in PLANES.items() if its == part]
        assert [row["file_name"] for row in rows] == [f"images/{image}.jpg" for image in expected]
        for image, row in zip(expected, rows, strict=True):
            variant = PLANES[image][1]
            assert [names[column][row[column]] for column in names] == [variant, *VARIANTS[variant]]


def test_aircraft_without_the_other_levels(planes):
    (planes / "data" / "families.txt").unlink()
    (planes / "data" / "manufacturers.txt").unlink()
    assert load_aircraft(planes).splits["test"].column_names == ["image", "label", "file_name"]


def test_cars_from_the_devkit(tmp_path, add_pictures, capsys):
    write_cars(tmp_path / "cars")
    add_pictures(tmp_path / "cars" / "cars_train", [f"{number:05d}.jpg" for number in range(1, 21)])
    add_pictures(tmp_path / "cars" / "cars_test", ["00001.jpg", "00002.jpg"])
    assert main(["data", "prepare", "cars", "--root", str(tmp_path / "cars"), "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == ["train: 18 images", "validation: 2 images", "test: 2 images"]
    data = load_attribute_dataset(tmp_path / "out")
    assert data.attributes == {"label": CARS}
    assert data.splits["test"]["file_name"][:] == ["cars_test/00001.jpg", "cars_test/00002.jpg"]
    assert data.splits["test"]["label"][:] == [1, 0]
    for split in ("train", "validation"):
        for name, label in zip(data.splits[split]["file_name"], data.splits[split]["label"], strict=True):
            assert label == (int(Path(name).stem) - 1) % 2


def test_cars_from_one_file_and_a_single_test_image(tmp_path):
    rows = [
        {"relative_im_path": f"car_ims/{n:06d}.jpg", **BOX, "class": 1 + n % 2, "test": int(n == 7)} for n in range(8)
    ]
    content = {"annotations": annotations(rows), "class_names": np.array([CARS], dtype=object)}
    savemat(tmp_path / "cars_annos.mat", content)
    splits = load_cars(tmp_path).splits
    assert splits["test"].remove_columns("image").to_list() == [{"label": 1, "file_name": "car_ims/000007.jpg"}]
    assert splits["train"].num_rows == 7 and splits["validation"].num_rows == 0  # a tenth of 4 is none
    write_cars(tmp_path / "devkit", num_test=1)
    assert load_cars(tmp_path / "devkit").splits["test"]["file_name"][:] == ["cars_test/00001.jpg"]


def test_a_tenth_of_every_class_is_validation():
    images = [
        Image(f"{label}-{number}", (label,)) for label, count in enumerate((30, 4, 20)) for number in range(count)
    ]
    kept, validation = cut_validation(images)
    assert Counter(image.classes for image in validation) == {(0,): 3, (2,): 2}
    assert sorted(kept + validation) == sorted(images) and cut_validation(images) == (kept, validation)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("images.txt", "1 a.jpg\n99 b.jpg\n", "images.txt, line 2: image 99 needs a class in image_class_labels.txt"),
        ("image_class_labels.txt", "1 3\n", "it has '3', which is not in classes.txt"),
        ("train_test_split.txt", "1 2\n", "line 1: image 1 needs 0 or 1 in train_test_split.txt; it has '2'"),
        ("classes.txt", "1 a\n2\n", "classes.txt, line 2: expected '<class> <name>', got '2'"),
    ],
)
def test_damaged_files_of_birds_are_named(birds, file, content, message):
    (birds / file).write_text(content)
    with pytest.raises(ValueError) as error:
        load_cub200(birds)
    assert message in str(error.value)


def test_damaged_files_of_aircraft_are_named(planes):
    (planes / "data" / "images_family_val.txt").write_text("")
    with pytest.raises(ValueError, match=r"images_family_val\.txt lacks 1 images, such as 0056978"):
        load_aircraft(planes)
    (planes / "data" / "images_variant_val.txt").write_text("0056978 Cessna 127\n")
    with pytest.raises(ValueError, match=r"_val\.txt, line 1: unknown name 'Cessna 127'. Did you mean 'Cessna 172'\?"):
        load_aircraft(planes)


def test_damaged_files_of_cars_are_named(tmp_path):
    write_cars(tmp_path)
    path = tmp_path / "cars_test_annos_withlabels.mat"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cars_test_annos_withlabels\.mat cannot be read as a \.mat file: "):
        load_cars(tmp_path)
    savemat(path, {"annotations": annotations([BOX | {"fname": "00001.jpg"}])})
    with pytest.raises(ValueError, match="annotation 1 has no class; its fields are bbox_x1, .*, fname"):
        load_cars(tmp_path)
    savemat(path, {"annotations": annotations([{"class": 3, "fname": "00001.jpg"}])})
    with pytest.raises(ValueError, match="annotation 1: class must be from 1 to 2, got 3"):
        load_cars(tmp_path)
    savemat(path, {"something": 1})
    with pytest.raises(ValueError, match="withlabels.mat has no annotations; it has something"):
        load_cars(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cub200", "there is no train_test_split.txt in ROOT or its subfolders; it comes with CUB-200-2011, "),
        ("aircraft", "there is no variants.txt in ROOT or its subfolders; it comes with FGVC-Aircraft, "),
        ("cars", "there is no cars_meta.mat in ROOT or its subfolders; it comes with Stanford Cars: "),
    ],
)
def test_missing_files_are_named_with_their_origin(name, message, tmp_path, capsys):
    words = ["data", "prepare", name, "--root", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main(words) == 1
    assert message.replace("ROOT", str(tmp_path)) in capsys.readouterr().err
    assert main([*words, "--seed", "1"]) == 2
    assert f"--seed is not for {name}" in capsys.readouterr().err
