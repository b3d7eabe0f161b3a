"""A checkpoint on the Hub, by the real huggingface_hub against a stand-in: all of it in one commit, or nothing."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from PIL import Image
from transformers import ViTConfig, ViTModel
from transformers.pipelines import SUPPORTED_TASKS

from cca_hf import CCAModel, CCATrainer, CCATrainingArguments, load_attribute_dataset
from cca_hf.cli.train import train_and_report
from cca_hf.hub.integrity import check_folder
from cca_hf.hub.publishing import stage_model

from .conftest import VIT
from .stand_in import Commit, Repository

SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)] + ["model.safetensors.index.json"]

# each step: what breaks, which token there is, and the words of a command
COMMANDS = """
import contextlib, io, json, os, sys, time, urllib.request
time.sleep = lambda seconds: None  # huggingface_hub waits between its tries
from cca_hf.cli.main import main

told = []
for breaks, token, words in json.loads(sys.argv[1]):
    place = os.environ["HF_ENDPOINT"] + "/stand-in/breaks"
    urllib.request.urlopen(urllib.request.Request(place, json.dumps(breaks).encode())).read()
    os.environ["HF_TOKEN"] = token
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = main(words)
    told.append({"code": code, "output": output.getvalue().strip(), "errors": errors.getvalue().strip()})
print(json.dumps(told))
"""
TRANSFORMERS = """
import json, sys
import torch
from transformers import AutoImageProcessor, AutoModel, pipeline

repo, revision, *pictures = sys.argv[1:]
model = AutoModel.from_pretrained(repo, revision=revision, trust_remote_code=True)
embed = pipeline("image-feature-extraction", model=repo, revision=revision, trust_remote_code=True)
through = [list(embed(picture).values()) for picture in pictures]
print(json.dumps({"encode": model.encode(pictures).tolist(), "pipeline": through}))
"""
SENTENCE_TRANSFORMERS = """
import json, sys
from sentence_transformers import SentenceTransformer

repo, revision, *pictures = sys.argv[1:]
model = SentenceTransformer(repo, revision=revision, trust_remote_code=True)
names = model[0].model.config.attributes
print(json.dumps({name: model.encode(pictures, attribute=name).tolist() for name in names}))
"""
WITH_PACKAGE = """
import json, sys
from cca_hf import CCAModel

repo, revision, *pictures = sys.argv[1:]
model = CCAModel.from_pretrained(repo, revision=revision)
print(json.dumps([type(model).__module__, model.encode(pictures).tolist()]))
"""

ROUNDING = 2e-5  # of float32 numbers, which the angles of an attribute map multiply


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    """The finished training with its pictures, and with what a longer one leaves beside them."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("publish") / "cca-shapes")
    for name in ("report.png", "examples/1.jpg", "examples/1-neighbours.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    (folder / "optimizer.pt").write_bytes(b"not for others")
    assert any(folder.glob("checkpoint-*")) and (folder / "training_args.bin").exists()
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for number in range(3):
        pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def pushed(hub, run_on_hub, folder, finished, tmp_path_factory):
    """One push after another: the connection breaks, and breaks again, before all goes well."""
    dry = tmp_path_factory.mktemp("dry") / "run"
    train = ["train", "--dataset", str(finished.parent / "my-shapes"), "--attributes", "shape", "colour"]
    train += ["--backbone_config", json.dumps(VIT), "--max_steps", "2", "--use_cpu", "--report_to", "none"]
    train += ["--push_to_hub", "--hub_model_id", "me/trained", "--hub_private_repo", "true", "--output_dir"]
    push = ["push", "--model", str(folder), "--repo"]
    earlier = Commit("e" * 40, "of another time", dict.fromkeys([*SHARDS, "notes.md"], b"{}"))
    hub.repositories["models/me/sharded"] = Repository(False, [earlier], {"main": earlier.oid})
    steps = [
        ({"upload": 99}, "hf_stand_in", [*push, "me/shapes", "--private"]),
        ({"commit": 1}, "hf_stand_in", [*push, "me/shapes", "--private"]),
        ({}, "hf_stand_in", [*push, "me/shapes", "--private"]),
        ({}, "hf_stand_in", [*push, "me/shapes", "--private"]),
        ({"upload": 1}, "hf_stand_in", [*push, "me/open", "--license", "apache-2.0", "--revision", "v2"]),
        ({}, "hf_stand_in", [*push, "me/open", "--private"]),
        ({}, "hf_stand_in", [*push, "me/sharded", "--message", "Smaller"]),
        ({}, "hf_of_nobody", [*push, "me/nothing"]),
        ({}, "hf_of_nobody", [*train, str(dry.parent / "not trained")]),
        ({}, "hf_stand_in", [*train, str(dry.parent / "trained")]),
        ({}, "hf_of_nobody", [*push, "me/shapes", "--dry_run", str(dry)]),
        ({}, "hf_stand_in", [*push, "me/shapes", "--dry_run", str(dry)]),
    ]
    names = (
        "upload breaks",
        "commit breaks",
        "well",
        "again",
        "branch",
        "not private",
        "sharded",
        "no token",
        "not trained",
        "trained",
        "dry",
        "dry again",
    )
    told = dict(zip(names, run_on_hub(COMMANDS, json.dumps(steps)), strict=True))
    return told | {"dry folder": dry}


def test_a_connection_that_breaks_leaves_nothing_half_written(hub, pushed):
    for name in ("upload breaks", "commit breaks"):
        assert pushed[name]["code"] == 1
        assert re.search(r"could not push to me/shapes: .*The repository is unchanged", pushed[name]["errors"])
        assert "Traceback" not in pushed[name]["errors"]
    repository = hub.repositories["models/me/shapes"]
    assert [commit.message for commit in repository.commits] == ["initial commit", "Push the model by cca_hf"]
    assert repository.private
    assert pushed["well"]["code"] == 0
    assert pushed["well"]["output"] == f"{hub.url}/me/shapes/commit/{repository.branches['main']}"


def test_what_has_arrived_is_not_sent_again(hub, pushed):
    """The weights arrived before the commit broke off, and the third push finds them there."""
    commits = [place for place, asked in enumerate(hub.asked) if asked == "POST /api/models/me/shapes/commit/main"]
    assert len(commits) == 2  # one broken off, one answered; the push of what is there already makes none
    assert not [asked for asked in hub.asked[commits[0] : commits[1]] if asked.startswith("PUT")]


def test_a_push_of_the_same_makes_no_commit(hub, pushed):
    assert pushed["again"] | {"errors": ""} == pushed["well"] | {"errors": ""}


def test_what_is_pushed(hub, pushed, folder):
    files = hub.repositories["models/me/shapes"].at("main").files
    expected = {"model.safetensors", "config.json", "preprocessor_config.json", "modules.json", "modeling_cca.py"}
    expected |= {
        "sentence_transformers_cca.py",
        "handler.py",
        "requirements.txt",
        "README.md",
        "report.png",
        "training.png",
    }
    expected |= {"examples/1.jpg", "examples/1-neighbours.png", "run.json", "test_evaluation.json", "all_results.json"}
    assert expected <= set(files)
    unwanted = re.compile(r"checkpoint-|optimizer|training_args|trainer_state|\.bin$|\.pt$|__pycache__")
    assert not [name for name in files if unwanted.search(name)]
    for name, content in files.items():
        assert str(folder.parent).encode() not in content, f"{name} says where it was made"
    assert 'from_pretrained("me/shapes"' in files["README.md"].decode()


def test_a_dry_run_is_what_is_pushed(hub, pushed):
    assert pushed["dry"]["code"] == 0 and pushed["dry"]["output"] == str(pushed["dry folder"])
    written = {
        path.relative_to(pushed["dry folder"]).as_posix(): path.read_bytes()
        for path in pushed["dry folder"].rglob("*")
        if path.is_file()
    }
    files = hub.repositories["models/me/shapes"].at("main").files
    assert written == {name: content for name, content in files.items() if name != ".gitattributes"}
    assert pushed["dry again"]["code"] == 1 and "exists already; choose a new folder" in pushed["dry again"]["errors"]


def test_a_branch(hub, pushed):
    repository = hub.repositories["models/me/open"]
    assert set(repository.at("main").files) == {".gitattributes"} and not repository.private
    assert "license: apache-2.0" in repository.at("v2").files["README.md"].decode()


def test_weights_of_an_earlier_push_go(hub, pushed):
    """With them in other shards beside the new ones, a loader might take either."""
    repository = hub.repositories["models/me/sharded"]
    assert pushed["sharded"]["code"] == 0 and [commit.message for commit in repository.commits][1:] == ["Smaller"]
    files = set(repository.at("main").files)
    assert {"notes.md", "model.safetensors"} <= files and not files & set(SHARDS)


def test_what_the_hub_refuses(hub, pushed):
    assert pushed["not private"]["code"] == 1
    assert "me/open already exists and is public" in pushed["not private"]["errors"]
    assert pushed["no token"]["code"] == 1 and "models/me/nothing" not in hub.repositories
    assert "401" in pushed["no token"]["errors"] and "hf auth login" in pushed["no token"]["errors"]


def test_a_training_that_pushes(hub, pushed):
    """Once, when all is measured; and where that would not go, it says so before it trains."""
    assert pushed["not trained"]["code"] == 1 and "401" in pushed["not trained"]["errors"]
    assert not list((pushed["dry folder"].parent / "not trained").rglob("*.safetensors"))
    repository = hub.repositories["models/me/trained"]
    assert pushed["trained"]["code"] == 0, pushed["trained"]["errors"]
    told = pushed["trained"]["output"].splitlines()[-1]
    assert told == f"pushed: {hub.url}/me/trained/commit/{repository.branches['main']}"
    assert repository.private and len(repository.commits) == 2
    files = set(repository.at("main").files)
    assert {"report.png", "examples/2-neighbours.png", "test_evaluation.json", "run.json"} <= files
    widgets = ModelCard(repository.at("main").files["README.md"].decode()).data.to_dict()["widget"]
    assert [example["src"] for example in widgets] == ["examples/1.jpg", "examples/2.jpg"]


def test_loads_with_transformers_alone(hub, run_on_hub, pushed, finished, pictures):
    oid = hub.repositories["models/me/shapes"].branches["main"]
    found = run_on_hub(TRANSFORMERS, "me/shapes", oid, *pictures, hidden=["cca_hf", "sentence_transformers"])
    expected = CCAModel.from_pretrained(finished).encode(pictures)
    np.testing.assert_allclose(found["encode"], expected, atol=ROUNDING)
    np.testing.assert_allclose(found["pipeline"], expected, atol=ROUNDING)


def test_loads_with_sentence_transformers(hub, run_on_hub, pushed, finished, pictures):
    found = run_on_hub(SENTENCE_TRANSFORMERS, "me/open", "v2", *pictures, hidden=["cca_hf"])
    expected = CCAModel.from_pretrained(finished).encode(pictures)
    assert list(found) == ["shape", "colour"]
    np.testing.assert_allclose(np.stack(list(found.values()), axis=1), expected, atol=ROUNDING)


def test_loads_with_the_package(hub, run_on_hub, pushed, finished, pictures):
    module, found = run_on_hub(WITH_PACKAGE, "me/open", "v2", *pictures)
    assert module == "cca_hf.models.modeling_cca"
    np.testing.assert_allclose(found, CCAModel.from_pretrained(finished).encode(pictures), atol=ROUNDING)


def test_its_metadata_is_what_the_hub_reads(hub, pushed, finished):
    card = ModelCard(hub.repositories["models/me/open"].at("v2").files["README.md"].decode())
    data = card.data.to_dict()
    assert data["pipeline_tag"] in SUPPORTED_TASKS and data["library_name"] == "transformers"
    assert "sentence-transformers" in data["tags"] and len(set(data["tags"])) == len(data["tags"])
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "open" and eval_results_to_model_index(name, results) == data["model-index"]
    measured = json.loads((finished / "all_results.json").read_text())["test_map"]
    (mean,) = [each for each in results if each.metric_type == "map"]
    assert mean.metric_value == pytest.approx(100 * measured, abs=0.005)
    (example,) = data["widget"]
    files = hub.repositories["models/me/open"].at("v2").files
    assert example["src"] in files and example["output"]["url"] in files


def test_a_card_of_ones_own_stays(folder, tmp_path):
    own = shutil.copytree(folder, tmp_path / "own")
    (own / "README.md").write_text('Mine: AutoModel.from_pretrained("me/mine"), ![it](pictures/it.png)')
    with pytest.raises(FileNotFoundError, match=r"README\.md shows pictures/it\.png, which is not in"):
        stage_model(own, tmp_path / "first", "me/mine")
    (own / "pictures").mkdir()
    shutil.copy(own / "report.png", own / "pictures" / "it.png")
    staged = stage_model(own, tmp_path / "second", "me/mine")
    assert (staged / "README.md").read_text().startswith("Mine") and (staged / "pictures" / "it.png").exists()
    staged = stage_model(own, tmp_path / "third", "me/other")
    assert 'from_pretrained("me/other"' in (staged / "README.md").read_text()


def test_hidden_files_and_links_stay(folder, tmp_path, caplog):
    secret = tmp_path / "elsewhere" / "id_rsa"
    secret.parent.mkdir()
    secret.write_text("SECRET")
    own = shutil.copytree(folder, tmp_path / "own")
    for name in (".env", "examples/.env", "examples/notes.txt", "examples/12.jpg", "deep/.git/config", "token.json"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text('{"hf": "SECRET"}')
    for name in ("report.png", "examples/1-neighbours.png"):
        (own / name).unlink()
        (own / name).symlink_to(secret)
    (own / "linked.json").write_text(json.dumps({"card": {"title": "T", "task": "t", "markdown": "M"}}))
    (own / "linked.png").symlink_to(secret)
    staged = stage_model(own, tmp_path / "staged", "me/own")
    names = {path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file()}
    checkpoint = {"config.json", "preprocessor_config.json", "modules.json", "model.safetensors", "checksums.json"}
    of_the_run = {
        "run.json",
        "all_results.json",
        "test_evaluation.json",
        "training.png",
        "examples/1.jpg",
        "linked.json",
    }
    beside = {"README.md", "handler.py", "requirements.txt"}
    assert {name for name in names if not name.endswith(".py")} | {
        "handler.py"
    } == checkpoint | of_the_run | beside | {"examples/1.jpg"}
    assert not any(b"SECRET" in (staged / name).read_bytes() for name in names)
    assert "report.png is hidden or a link, and is not published" in caplog.text
    linked = shutil.copytree(folder, tmp_path / "linked")
    (linked / "examples").rename(tmp_path / "examples")
    (linked / "examples").symlink_to(tmp_path / "examples")
    assert not (stage_model(linked, tmp_path / "staged-too", "me/own") / "examples").exists()


@pytest.mark.parametrize("shown", [".env", "pictures/.hidden.png", "link.png", "linked/it.png", "run.json", "%2Eenv"])
def test_a_card_shows_images_only(folder, tmp_path, shown):
    own = shutil.copytree(folder, tmp_path / "own")
    (own / ".env").write_text("SECRET")
    (own / "pictures").mkdir()
    shutil.copy(own / "report.png", own / "pictures" / ".hidden.png")
    (own / "link.png").symlink_to(own / ".env")
    (own / "linked").symlink_to(tmp_path / "secrets")
    (tmp_path / "secrets").mkdir()
    shutil.copy(own / "report.png", tmp_path / "secrets" / "it.png")
    (own / "README.md").write_text(f'AutoModel.from_pretrained("me/mine"), ![]({shown})')
    with pytest.raises(ValueError, match="which is not published: an image of a card is a file that is neither"):
        stage_model(own, tmp_path / "staged", "me/mine")


def test_a_checkpoint_without_a_training(finished, tmp_path):
    CCAModel.from_pretrained(finished).save_pretrained(tmp_path / "bare")
    text = (stage_model(tmp_path / "bare", tmp_path / "staged", "me/bare") / "README.md").read_text()
    assert "No evaluation result is stored with this model." in text and "Retrieval quality" not in text
    assert "| shape |" in text and ModelCard(text).data.eval_results is None


def test_what_is_no_checkpoint(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match="contains no checkpoint: it has no config.json"):
        stage_model(tmp_path / "nowhere", tmp_path / "staged", "me/x")
    half = shutil.copytree(finished, tmp_path / "half")
    config = json.loads((half / "config.json").read_text())
    config["embedding_dim"] = config["hidden_size"]  # the projection that it asks for has no weights
    (half / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lacks 1 of the model's weights, such as projection\.weight"):
        stage_model(half, tmp_path / "staged", "me/x")


def test_where_a_backbone_lay_is_not_told(finished, tmp_path):
    """Neither in the checkpoint nor in what is pushed; the id of a backbone on the Hub stays."""
    ViTModel(ViTConfig(**VIT), add_pooling_layer=False).save_pretrained(tmp_path / "secret" / "my-vit")
    model = CCAModel.from_backbone(tmp_path / "secret" / "my-vit", ["shape", "colour"])
    model.config.text_encoder = str(tmp_path / "secret" / "my-texts")
    model.save_pretrained(tmp_path / "model")
    staged = stage_model(tmp_path / "model", tmp_path / "staged", "me/x")
    kept = json.loads((tmp_path / "model" / "config.json").read_text())
    assert kept["text_encoder"] == model.config.text_encoder  # which loads it again
    text = (staged / "config.json").read_text()
    assert "secret" not in text and "_name_or_path" not in text
    assert {file.state for file in check_folder(staged)} == {"ok", "no checksum"}
    for config, text_encoder in ((kept, model.config.text_encoder), (json.loads(text), "./my-texts")):
        assert (config["backbone_name"], config["text_encoder"]) == ("./my-vit", text_encoder)
        assert "_name_or_path" not in config["backbone_config"]
    card = ModelCard.load(staged / "README.md")
    assert "- **Backbone**: my-vit\n" in card.text and card.data.base_model is None
    loaded = CCAModel.from_pretrained(tmp_path / "model")
    assert loaded.fingerprint() == model.fingerprint()
    loaded.config.backbone_name = loaded.config.backbone_config._name_or_path = "google/vit-base-patch16-224"
    loaded.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {config["backbone_name"], config["backbone_config"]["_name_or_path"]} == {"google/vit-base-patch16-224"}


def test_push_to_hub_of_the_trainer(finished, tmp_path):
    """It goes the way of `cca push`, and nothing else pushes."""
    told = []

    def publish(folder, repo_id, **settings):
        told.append((str(folder), repo_id, settings))
        return "somewhere"

    data = load_attribute_dataset(finished.parent / "my-shapes", ["shape", "colour"])
    args = CCATrainingArguments(
        str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none", hub_private_repo=True, hub_revision="v2"
    )
    args.hub_token = "hf_secret"
    trainer = CCATrainer(CCAModel.from_pretrained(finished), args, data, publish=publish)
    trainer.save_model()
    assert not told
    saved = (tmp_path / "out" / "training_args.bin").read_bytes()
    assert b"hub_revision" in saved and b"hf_secret" not in saved
    assert trainer.push_to_hub() == "somewhere"
    settings = {"private": True, "revision": "v2", "token": "hf_secret"}
    assert told == [(str(tmp_path / "out"), "out", settings)]
    with pytest.raises(ValueError, match=r"publish=cca_hf\.push_model"):
        CCATrainer(CCAModel.from_pretrained(finished), args, data).push_to_hub()


def test_push_to_hub_of_a_training(monkeypatch, tmp_path):
    pushed = []
    parts = {"model": "a model", "data": "data", "history": [], "entanglement": None}
    run = SimpleNamespace(result="a result", output_dir=tmp_path / "my-run", **parts)
    monkeypatch.setattr("cca_hf.training.process.prepare_process", lambda *settings: None)
    monkeypatch.setattr("cca_hf.recipes.attribute_retrieval.run_training", lambda *arguments: run)
    monkeypatch.setattr("cca_hf.recipes.evaluation.report_name", lambda model: "CCA")
    monkeypatch.setattr("cca_hf.visualization.report.write_report", lambda *given, **measured: "report.html")
    monkeypatch.setattr("cca_hf.hub.model_card.write_model_card", lambda folder: folder / "README.md")
    monkeypatch.setattr(
        "cca_hf.hub.publishing.push_model", lambda *places, **settings: pushed.append((places, settings))
    )
    settings = {"use_cpu": True, "bf16": False, "hub_token": "hf_x"}
    train_and_report(None, None, CCATrainingArguments(str(run.output_dir), **settings))
    assert not pushed
    train_and_report(None, None, CCATrainingArguments(str(run.output_dir), push_to_hub=True, **settings))
    assert pushed == [((run.output_dir, "my-run"), {"private": None, "revision": None, "token": "hf_x"})]
    with pytest.raises(ValueError, match="hub_strategy must be end: .* got every_save"):
        CCATrainingArguments(str(tmp_path), hub_strategy="every_save")
