"""The dependencies of an installation, the content of the wheel, and the imports of `import cca_hf`."""

import configparser
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cca_hf.extras import PACKAGES

from .warm_python import WarmPython

# The dependencies of `pip install .`; all others are extras.
CORE = {
    "torch", "transformers", "datasets", "accelerate", "huggingface-hub", "safetensors", "evaluate", "pillow", "numpy",
    "typer", "filelock", "jinja2",
}  # fmt: skip


def run_python(code: str, **options: str) -> str:
    """Runs code in a new Python process and returns its output."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def setup_cfg(repository: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(repository / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> dict[str, str]:
    """Parses lines such as `name>=1,<2` into {name: ">=1,<2"}, without comments."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    split = [re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", line) for line in lines if line]
    return {found[1].lower(): found[2] for found in split if found}


def test_core_dependencies(setup_cfg: configparser.ConfigParser) -> None:
    assert set(requirements(setup_cfg["options"]["install_requires"])) == CORE


def test_lowest_versions_agree(repository: Path, setup_cfg: configparser.ConfigParser) -> None:
    """constraints-lowest.txt pins the lower bounds of setup.cfg, except torch, which constraints.txt pins."""
    allowed = requirements(setup_cfg["options"]["install_requires"])
    for extra in ("plot", "analysis", "text", "heic", "augmentation"):
        allowed |= requirements(setup_cfg["options.extras_require"][extra])
    lowest = requirements((repository / "constraints-lowest.txt").read_text(encoding="utf-8"))
    others = {"pandas", "gradio"}  # pandas is a dependency of datasets; the line on gradio spares pip a long search
    assert set(lowest) - others == set(allowed) - {"torch"}
    for name, pin in ((name, pin) for name, pin in lowest.items() if name in allowed):
        bound = re.match(r">=([\d.]+)", allowed[name])
        assert bound, f"{name} has no lower bound in setup.cfg"
        given, wanted = ([int(part) for part in text.split(".")] for text in (pin.removeprefix("=="), bound[1]))
        assert given == wanted + [0] * (len(given) - len(wanted)), (
            f"{name}: {pin} tests another version than {bound[0]}"
        )
    assert requirements((repository / "constraints.txt").read_text(encoding="utf-8"))["torch"] == "==2.13.0"


def test_requirements_of_a_checkpoint_agree(repository: Path, setup_cfg: configparser.ConfigParser) -> None:
    """The requirements.txt of a pushed checkpoint has the version bounds of setup.cfg."""
    pushed = requirements((repository / "src/cca_hf/hub/requirements.txt").read_text(encoding="utf-8"))
    allowed = requirements(setup_cfg["options"]["install_requires"])
    assert {"torch", "transformers", "pillow"} <= set(pushed) and pushed.items() <= allowed.items()


def test_metadata_is_in_one_place(repository: Path) -> None:
    build = (repository / "pyproject.toml").read_text(encoding="utf-8")
    assert "[project" not in build, "the metadata belongs to setup.cfg"
    assert (repository / "LICENSE").read_text(encoding="utf-8").lstrip().startswith("Apache License")


def test_installed_metadata(setup_cfg: configparser.ConfigParser) -> None:
    version = run_python("import cca_hf; print(cca_hf.__version__)")
    assert version == setup_cfg["metadata"]["version"] == importlib.metadata.version("cca_hf")
    commands = {entry.name: entry.value for entry in importlib.metadata.distribution("cca_hf").entry_points}
    assert commands == {"cca": "cca_hf.cli.main:main"}


def test_wheel_contains_the_package(repository: Path, tmp_path: Path) -> None:
    """Builds from a copy, to leave no files in the checkout, and without isolation, to download nothing."""
    copy = tmp_path / "checkout"
    pages = [path.relative_to(repository).as_posix() for path in (repository / "docs").rglob("*.md")]
    for name in ("pyproject.toml", "setup.cfg", "setup.py", "README.md", "LICENSE", "MANIFEST.in", *pages):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((repository / name).read_bytes())
    sources = [
        path
        for path in (repository / "src" / "cca_hf").rglob("*")
        if path.suffix in (".py", ".md", ".txt", ".css", ".html", ".js", ".bib") or path.name == "py.typed"
    ]
    for path in sources:
        target = copy / path.relative_to(repository)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, copy]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("cca_hf-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert {path.relative_to(repository / "src").as_posix() for path in sources} <= names
    assert {f"cca_hf/{page}" for page in pages} <= names
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r}); "
    code += "from cca_hf.cli.main import main; main(['docs', 'search'])"
    assert run_python(code) == (repository / "docs" / "search.md").read_text(encoding="utf-8").strip()
    assert any(name.endswith("/LICENSE") for name in names)
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata


def test_import_is_light() -> None:
    imported = run_python("import sys, cca_hf; print(*sys.modules)").split()
    assert not {"torch", "transformers", "datasets", "accelerate", "evaluate", "matplotlib"} & set(imported)


SAVE_CHECKPOINT = """
import sys
from transformers import ViTConfig, ViTModel
from cca_hf import CCAModel
folder = sys.argv[1]
ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32,
                   patch_size=8), add_pooling_layer=False).save_pretrained(folder + "/vit")
CCAModel.from_backbone(folder + "/vit", attributes=["colour", "shape"]).save_pretrained(folder + "/cca")
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, warm_torch: WarmPython) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    warm_torch.run("-c", SAVE_CHECKPOINT, folder, check=True)
    return folder / "cca"


IMPORTS = [
    "import cca_hf.models; from transformers import AutoConfig, AutoModel",
    "from transformers import AutoConfig, AutoModel; import cca_hf.models",
    "from cca_hf import CCAConfig; from transformers import AutoConfig, AutoModel",
    "import cca_hf.models.modeling_conditional; from transformers import AutoConfig, AutoModel",
]
CLASSES = "; print([type(auto.from_pretrained({!r})).__module__ for auto in (AutoConfig, AutoModel)])"


@pytest.mark.parametrize("imports", IMPORTS)
def test_auto_classes_know_cca(imports: str, checkpoint: Path, warm_torch: WarmPython) -> None:
    """The auto classes return the classes of this package without trust_remote_code, in every order of imports."""
    done = warm_torch.run("-c", imports + CLASSES.format(str(checkpoint)), check=True)
    assert done.stdout == "['cca_hf.models.configuration_cca', 'cca_hf.models.modeling_cca']\n"


def test_packages_of_extras_agree(setup_cfg: configparser.ConfigParser) -> None:
    """`require` looks for the packages that setup.cfg lists."""
    extras = setup_cfg["options.extras_require"]
    for extra, modules in PACKAGES.items():
        lines = [line.split("#")[0].strip() for line in extras[extra].splitlines()]
        listed = {re.split(r"[\[<>=]", line)[0] for line in lines if line and not line.startswith("cca_hf[")}
        for nested in re.findall(r"cca_hf\[(\w+)\]", extras[extra]):
            listed |= set(PACKAGES[nested].values())
        assert set(modules.values()) == listed, extra


def test_extras_of_an_installed_package_need_no_index() -> None:
    """The command of the errors: pip finds the extra in the metadata of the package, which no index has to have."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "cca_hf[plot]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Requirement already satisfied: matplotlib\S* .*\(from cca_hf\[plot\]\)", done.stdout)
