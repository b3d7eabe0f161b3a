"""`CCAModel.encode`: pictures and names in, one array out."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from cca_hf import CCAModel, UnreadableImageError


def test_all_attributes_in_the_configs_order(model, pictures):
    pictures = [picture.resize((32, 32)) for picture in pictures]  # what resizing may differ by: test_image_reader
    embeddings = model.encode(pictures)
    assert isinstance(embeddings, np.ndarray) and embeddings.shape == (5, 3, 32) and embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=-1), 1, atol=1e-5)
    pixel_values = model.image_processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(pixel_values, attribute_ids=torch.arange(3).expand(5, 3)).embeddings
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


def test_attributes_by_name(model, pictures):
    everything = model.encode(pictures)
    np.testing.assert_allclose(model.encode(pictures, ["heel height", "colour"]), everything[:, [2, 0]], atol=1e-5)
    np.testing.assert_allclose(model.encode(pictures, "shape"), everything[:, [1]], atol=1e-5)


def test_one_attribute_has_no_axis_if_it_is_named_by_attribute(model, pictures):
    everything = model.encode(pictures)
    np.testing.assert_allclose(model.encode(pictures, attribute="shape"), everything[:, 1], atol=1e-5)
    np.testing.assert_allclose(model.encode(pictures, attribute=["shape"]), everything[:, [1]], atol=1e-5)
    np.testing.assert_allclose(model.encode(pictures[:1], attribute="shape"), everything[:1, 1], atol=1e-5)
    for image in (pictures[0], np.asarray(pictures[0])):
        np.testing.assert_allclose(model.encode(image, attribute="shape"), everything[0, 1], atol=1e-5)
    with pytest.raises(ValueError, match="either attribute or attributes, and not both; got 'shape' and 'colour'"):
        model.encode(pictures, "colour", attribute="shape")


def test_words_of_sentence_transformers(model, pictures, capsys):
    expected = model.encode(pictures)
    for words in ({"convert_to_tensor": True}, {"convert_to_numpy": False}):
        tensor = model.encode(pictures, **words, normalize_embeddings=True, device="cpu")
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_allclose(tensor, expected, atol=1e-5)
    capsys.readouterr()
    model.encode(pictures, show_progress_bar=True)
    assert "Encoding" in capsys.readouterr().err
    model.encode(pictures, batch_size=2, show_progress_bar=False)
    assert "Encoding" not in capsys.readouterr().err
    assert model.get_embedding_dimension() == model.get_sentence_embedding_dimension() == 32


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"atribute": "colour"}, TypeError, "encode has no parameter 'atribute'. Did you mean 'attribute'"),
        ({"show_progres": True}, TypeError, "no parameter 'show_progres'. Did you mean 'show_progress'"),
        ({"prompt_name": "colour"}, TypeError, "'prompt_name'. The condition of an image is an attribute, such as"),
        ({"precision": "int8"}, TypeError, r"'precision'. Convert the model first, such as model.half\(\), or export"),
        ({"pool": None}, TypeError, "no parameter 'pool'. Its parameters are images, attributes, attribute, batch_s"),
        ({"normalize_embeddings": False}, ValueError, "are always L2-normalised: leave out normalize_embeddings"),
    ],
)
def test_a_wrong_word_ends_with_the_right_one(model, pictures, words, error, message):
    with pytest.raises(error, match=message):
        model.encode(pictures, **words)


def test_similarity(model, pictures):
    embeddings = model.encode(pictures)
    found = model.similarity(embeddings[:2], embeddings)
    assert isinstance(found, torch.Tensor) and found.shape == (2, 5, 3)
    for row in range(2):
        for other in range(5):
            for place in range(3):
                cosine = embeddings[row, place] @ embeddings[other, place]
                assert found[row, other, place].item() == pytest.approx(cosine, abs=1e-5)
    colour = torch.from_numpy(embeddings[:, 0])
    np.testing.assert_allclose(model.similarity(3 * colour, colour), colour @ colour.T, atol=1e-5)
    np.testing.assert_allclose(model.similarity(colour[0], colour)[0], colour @ colour[0], atol=1e-5)
    with pytest.raises(ValueError, match=r"with the same attributes; got \(5, 32\) and \(5, 3, 32\)"):
        model.similarity(colour, embeddings)


def test_batches_workers_and_output(model, pictures):
    expected = model.encode(pictures)
    np.testing.assert_allclose(model.encode(pictures, batch_size=2), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode(pictures, batch_size=2, num_workers=2), expected, atol=1e-5)
    tensor = model.encode(pictures, output="torch")
    assert isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu"
    np.testing.assert_allclose(tensor, expected, atol=1e-5)


def test_inputs_of_all_kinds(model, pictures, tmp_path):
    expected = model.encode(pictures)
    paths = []
    for number, picture in enumerate(pictures):
        paths.append(tmp_path / f"{number}.png")
        picture.save(paths[-1])
    column = datasets.Dataset.from_dict({"image": pictures})["image"]
    undecoded = datasets.Dataset.from_dict({"image": list(map(str, paths))}).cast_column(
        "image", datasets.Image(decode=False)
    )["image"]
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    for images in (paths, list(map(str, paths)), column, undecoded, list(arrays), arrays, tuple(pictures)):
        np.testing.assert_allclose(model.encode(images), expected, atol=1e-5)


def test_one_picture_and_none(model, pictures):
    assert model.encode(pictures[0]).shape == (1, 3, 32)
    assert model.encode(np.asarray(pictures[0]), "colour").shape == (1, 1, 32)
    assert model.encode([]).shape == (0, 3, 32)


def test_mode_is_left_as_it_was(model, pictures):
    model.train()
    model.encode(pictures)
    assert model.training


def test_progress_bar(model, pictures, capsys):
    model.encode(pictures, batch_size=2)
    assert "Encoding" in capsys.readouterr().err
    model.encode(pictures, batch_size=2, show_progress=False)
    assert "Encoding" not in capsys.readouterr().err


def test_refusals(model, pictures, tmp_path):
    with pytest.raises(ValueError, match=r"unknown attribute 'color'\. Did you mean 'colour'\?.*heel height"):
        model.encode(pictures, ["color"])
    with pytest.raises(ValueError, match="attributes is empty"):
        model.encode(pictures, [])
    with pytest.raises(ValueError, match="'numpy' or 'torch'; got 'np'"):
        model.encode(pictures, output="np")
    (tmp_path / "bad.jpg").write_text("no")
    with pytest.raises(UnreadableImageError, match="bad.jpg"):
        model.encode([pictures[0], tmp_path / "bad.jpg"])


def test_what_is_no_list_of_images(model, pictures, tmp_path):
    """They ended with "object of type 'generator' has no len()"."""
    pictures[0].save(tmp_path / "a.png")
    for images, what in (
        (iter(pictures), "list_iterator, pass list"),
        ({"a.png"}, "set, pass list"),
        (None, "NoneType$"),
    ):
        with pytest.raises(TypeError, match=f"images must be an image or a list of images; got {what}"):
            model.encode(images)
        with pytest.raises(TypeError, match=f"a list of images; got {what}"):
            model.encode_batches(images)
    with open(tmp_path / "a.png", "rb") as file, pytest.raises(TypeError, match="got an open file, pass its path or"):
        model.encode(file)
    with pytest.raises(TypeError, match="got dict_values, pass list"):
        model.encode({"a": pictures[0]}.values())


def test_attention_maps_of_several_levels_lie_on_the_finest_grid(attributes, pictures):
    from transformers import MobileNetV2Config

    torch.manual_seed(0)
    model = CCAModel.from_backbone(MobileNetV2Config(depth_multiplier=0.35, image_size=64), attributes).eval()
    # by hand: each coarse cell's attention spread evenly over the finer cells that it covers
    pixel_values = model.image_processor(pictures[:1], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        weights = model(pixel_values, attribute_ids=torch.tensor([[1]]), output_attentions=True).attentions[0, 0]
        grids = model.tokens_and_grids(pixel_values)[1]
    finest = max(grids)
    expected, place = np.zeros((len(weights), *finest)), 1
    for height, width in grids:
        cells = weights[:, place : place + height * width].reshape(-1, height, width).numpy()
        place += height * width
        covered = {}
        for row in range(finest[0]):
            for column in range(finest[1]):
                coarse = (row * height // finest[0], column * width // finest[1])
                covered.setdefault(coarse, []).append((row, column))
        for coarse, finer in covered.items():
            for row, column in finer:
                expected[:, row, column] += cells[:, *coarse] / len(finer)
    assert place == weights.shape[1] and len(set(grids)) == 3
    got = model.attention_maps(pictures[0], "shape")[0, 0]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(got.sum((1, 2)), 1 - weights[:, 0].numpy(), atol=1e-5)  # the summary has no place
    with pytest.raises(ValueError, match="images is empty"):
        model.attention_maps([])


class Watched:
    """A sequence that knows what was asked of it."""

    def __init__(self, pictures, length):
        self.pictures, self.length, self.asked = pictures, length, []

    def __len__(self):
        return self.length

    def __getitem__(self, row):
        self.asked.append(row)
        return self.pictures[row % len(self.pictures)]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_pictures_are_read_once_in_order_and_little_ahead(model, pictures, num_workers):
    images = Watched(pictures, 40)
    batches = model.encode_batches(images, "shape", batch_size=4, num_workers=num_workers)
    assert images.asked == []
    first = next(batches)
    assert first.rows == [0, 1, 2, 3] and first.values.shape == (4, 1, 32)
    assert len(images.asked) <= 4 * 5  # the batch, the one that runs behind it, two ahead, and one on its way
    rest = list(batches)
    assert [row for batch in rest for row in batch.rows] == list(range(4, 40))
    assert sorted(images.asked) == list(range(40))
    expected = model.encode(pictures, "shape")
    for batch in (first, *rest):
        np.testing.assert_allclose(batch.values, expected[[row % 5 for row in batch.rows]], atol=1e-5)


def test_who_stops_asking_stops_the_threads(model, pictures):
    import threading

    batches = model.encode_batches(Watched(pictures, 1000), batch_size=2, num_workers=2)
    next(batches)
    assert any(thread.name.startswith("read-images") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("read-images") for thread in threading.enumerate())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_pictures_are_skipped_when_asked(model, pictures, tmp_path, num_workers):
    pictures[0].save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2])
    opened = Image.open(tmp_path / "half.jpg")
    images = [*pictures[:2], tmp_path / "half.jpg", tmp_path / "none.jpg", opened, pictures[2]]
    got = list(model.encode_batches(images, batch_size=2, num_workers=num_workers, on_unreadable="skip"))
    assert [row for batch in got for row in batch.rows] == [0, 1, 5]
    reasons = {row: str(error) for batch in got for row, error in batch.unreadable.items()}
    assert list(reasons) == [2, 3, 4] and "half.jpg" in reasons[2] and "half.jpg" in reasons[4]
    with pytest.raises(UnreadableImageError, match=r"images\[2\]: .*half.jpg"):
        list(model.encode_batches(images, batch_size=2, num_workers=num_workers))
    only = list(model.encode_batches([tmp_path / "none.jpg"], on_unreadable="skip"))
    assert only[0].rows == [] and only[0].values.shape == (0, 3, 32)
    with pytest.raises(ValueError, match="'error' or 'skip'; got 'ignore'"):
        list(model.encode_batches(images, on_unreadable="ignore"))


def test_the_same_opened_file_many_times(model, pictures, tmp_path):
    pictures[0].save(tmp_path / "a.png")
    expected = model.encode(pictures[0])
    got = model.encode([Image.open(tmp_path / "a.png")] * 20, batch_size=4, num_workers=4)
    np.testing.assert_allclose(got, np.repeat(expected, 20, axis=0), atol=1e-5)


def test_fingerprint_tells_models_apart(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert CCAModel.from_pretrained(tmp_path).fingerprint() == model.fingerprint()
    first = model.fingerprint()
    model.layernorm.bias.data[0] += 1e-3
    changed = model.fingerprint()
    model.image_processor.resample = 3
    assert len({first, changed, model.fingerprint()}) == 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_dead_url_is_named_with_its_row_or_skipped(model, image_server, pictures, num_workers):
    url, answers = image_server
    answers["/closed.png"] = "hang up"
    images = [pictures[0], f"{url}/closed.png", pictures[1], f"{url}/none.png"]
    with pytest.raises(UnreadableImageError, match=rf"images\[1\]: '{url}/closed.png' cannot be read as an image"):
        model.encode(images, num_workers=num_workers)
    got = list(model.encode_batches(images, num_workers=num_workers, on_unreadable="skip"))
    assert [row for batch in got for row in batch.rows] == [0, 2]
    assert [list(batch.unreadable) for batch in got] == [[1, 3]]
    expected = model.encode([pictures[0], pictures[1]])
    np.testing.assert_allclose(got[0].values, expected, atol=1e-6)


def test_attention_maps_of_a_model_in_training(model, pictures):
    """Neither dropout nor a module that is kept in eval mode is touched."""
    expected = model.attention_maps(pictures[:2])
    model.train()
    model.backbone.eval()
    model.conditional_layer.attention.dropout = 0.5
    np.testing.assert_allclose(model.attention_maps(pictures[:2]), expected, atol=1e-6)
    assert model.training and model.conditional_layer.training and not model.backbone.training
