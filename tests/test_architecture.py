"""The rooms of the package and the arrows between them, read off the source with `ast`."""

import ast
import importlib
import inspect
import sys
from pathlib import Path

import pytest

PACKAGE = "cca_hf"
ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / PACKAGE
# Each room and the rooms that it may use; the arrows point down this list and never up.
MAY_USE = {
    "extras": set(),  # a file
    "lazy_names": set(),  # a file
    "models": set(),
    "data": {"models"},
    "evaluation": {"extras", "lazy_names", "models", "data"},
    "runtimes": {"extras", "models"},
    "embedding": {"extras", "models", "data", "runtimes"},
    "search": {"extras", "models", "data", "evaluation", "runtimes", "embedding"},
    "visualization": {"extras", "models", "data", "evaluation"},
    "training": {"models", "data", "evaluation"},
    "recipes": {"extras", "models", "data", "evaluation", "search", "visualization", "training"},
    "hub": {
        "extras",
        "models",
        "data",
        "evaluation",
        "embedding",
        "visualization",
        "search",
        "training",
        "recipes",
    },
}
MAY_USE["cli"] = set(MAY_USE)
# What travels to the Hub must load where only these are installed; transformers itself needs the last two.
REMOTE_CODE_MAY_IMPORT = {"torch", "transformers", "PIL", "numpy", "huggingface_hub", "safetensors"}
REMOTE_CODE_MAY_IMPORT |= set(sys.stdlib_module_names)
# To import under try/except, where transformers does not ask for it.
REMOTE_CODE_MAY_TRY = {"certifi", "pillow_heif", "sentence_transformers", "simplejpeg"}

FILES = sorted(SOURCE.rglob("*.py"))
MODEL_FILES = sorted((SOURCE / "models").glob("*.py"))

# Files of models/ with these prefixes belong to a family, such as `modeling_cca`. Floors and other files are shared.
FAMILY_PREFIXES = ("configuration_", "modeling_", "processing_", "pipeline_", "sentence_transformers_", "conversion_")
FAMILY_PREFIXES += ("attention_",)
FLOORS = {"configuration_images", "modeling_images", "modeling_conditional"}
# The baselines and ADDE are built on CCA; the baselines share a file.
BUILT_ON = {"csn": {"cca"}, "asen": {"cca"}, "separate": {"cca"}, "adde": {"cca"}, "cca_recognition": {"cca"}}
FAMILIES_OF_FILE = {"configuration_baselines": {"csn", "asen", "separate"}}
# What is saved with a checkpoint of each model, beside its weights.
SHARED = {
    "backbones",
    "configuration_images",
    "encoding",
    "fetching",
    "image_headers",
    "images",
    "modeling_conditional",
    "modeling_images",
    "value_prototypes",
    "whole_files",
}
CCA = SHARED | {"configuration_cca", "cross_attention", "modeling_cca", "pipeline_cca", "sentence_transformers_cca"}
OUTFIT = SHARED - {"modeling_conditional", "value_prototypes"} | {"configuration_outfit", "modeling_outfit"}
CLEAR = OUTFIT - {"configuration_outfit", "modeling_outfit"}
RECOGNITION = {"attribute_recognition", "recognition_pipeline"}
CLEAR |= RECOGNITION | {"configuration_clear", "cross_attention", "modeling_clear"}
TRAVELS = {
    "modeling_cca": CCA,
    "modeling_csn": CCA | {"configuration_baselines", "modeling_csn"},
    "modeling_asen": CCA | {"configuration_baselines", "modeling_asen"},
    "modeling_separate": CCA | {"configuration_baselines", "modeling_separate"},
    "modeling_outfit": OUTFIT,
    "modeling_adde": CCA | {"configuration_adde", "modeling_adde"},
    "modeling_cca_recognition": CCA | RECOGNITION | {"modeling_cca_recognition"},
    "modeling_clear": CLEAR,
    "modeling_crossvit": {
        "configuration_crossvit",
        "configuration_images",
        "conversion_crossvit",
        "cross_attention",
        "modeling_crossvit",
    },
    "modeling_dcal": {
        "attention_dcal",
        "backbones",
        "configuration_dcal",
        "configuration_images",
        "cross_attention",
        "modeling_dcal",
    },
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(module: str) -> str:
    """`cca_hf.data.schema` -> `data`; `cca_hf.cli.main` -> `cli`; the package itself -> ''."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def own_imports(tree: ast.Module, module: str, *, is_package: bool) -> set[str]:
    """The package's own modules that a file imports, anywhere in it, as absolute names."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parents = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            # `from . import data` names a module, `from .data import load` does not; both stand for their room.
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return {name for name in found if name.split(".")[0] == PACKAGE}


def violations(source: str, module: str, *, is_package: bool = False) -> set[str]:
    """Rooms that a file uses and may not."""
    room = room_of(module)
    used = {room_of(name) for name in own_imports(ast.parse(source), module, is_package=is_package)}
    if not room:  # the package's own file hands out the public names of every room; nothing hands out the cli
        return used & {"cli"}
    return used - MAY_USE[room] - {room}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_arrows(path: Path) -> None:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    assert not violations(path.read_text(encoding="utf-8"), module, is_package=is_package)


def test_every_room_is_known() -> None:
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= set(MAY_USE), f"rooms without arrows: {sorted(rooms - set(MAY_USE))}"


@pytest.mark.parametrize(
    ("source", "module", "expected"),
    [
        ("from ..data.schema import AttributeDataset", "cca_hf.models.modeling_cca", {"data"}),
        ("from .. import data", "cca_hf.models.modeling_cca", {"data"}),
        ("from cca_hf.training import trainer", "cca_hf.evaluation.retrieval.evaluator", {"training"}),
        ("import cca_hf.cli.main", "cca_hf.hub.publish", {"cli"}),
        ("def f():\n    from ..training.losses import Loss", "cca_hf.data.sampler", {"training"}),
        ("from cca_hf import CCAModel", "cca_hf.data.sampler", {"CCAModel"}),
        ("from .cli import main", "cca_hf", {"cli"}),
        ("from ..models.images import load_image\nfrom .columns import x", "cca_hf.data.schema", set()),
    ],
)
def test_arrows_are_seen(source: str, module: str, expected: set[str]) -> None:
    """The check itself: it sees each way of importing, at any depth."""
    assert violations(source, module, is_package=module == PACKAGE) == expected


def test_models_are_flat() -> None:
    folders = [path for path in (SOURCE / "models").iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert not folders, "code that travels with a checkpoint must lie in one folder"


@pytest.mark.parametrize("path", MODEL_FILES, ids=name_of)
def test_models_import_little(path: Path) -> None:
    siblings = {sibling.stem for sibling in MODEL_FILES}
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    tried = {statement for node in nodes if isinstance(node, ast.Try) for statement in ast.walk(node)}
    for node in nodes:
        allowed = REMOTE_CODE_MAY_IMPORT | (REMOTE_CODE_MAY_TRY if node in tried else set())
        if isinstance(node, ast.Import):
            strangers = {alias.name.split(".")[0] for alias in node.names} - allowed
            assert not strangers, f"line {node.lineno} imports {strangers}"
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None
            assert node.module.split(".")[0] in allowed, f"line {node.lineno} imports {node.module}"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 and node.module in siblings, f"line {node.lineno}: only `from .sibling import name`"


def siblings_of(path: Path) -> set[str]:
    """The files of models/ that a file imports; transformers saves these with a checkpoint too."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 1}


def families_of(name: str) -> set[str]:
    """The families that a file of models/ belongs to; none for a shared one."""
    for prefix in FAMILY_PREFIXES:
        if name.startswith(prefix) and name not in FLOORS:
            return FAMILIES_OF_FILE.get(name, {name.removeprefix(prefix)})
    return set()


@pytest.mark.parametrize("path", [path for path in MODEL_FILES if path.stem != "__init__"], ids=name_of)
def test_models_know_their_place(path: Path) -> None:
    """A shared file imports shared files only; a family imports no other one but that which it is built on."""
    families = families_of(path.stem)
    allowed = families.union(*(BUILT_ON.get(family, set()) for family in families))
    for sibling in siblings_of(path):
        found = families_of(sibling)
        assert not found or found & allowed, f"{path.stem} is of {families or 'no family'} and imports {sibling}"


@pytest.mark.parametrize("name", sorted({path.stem for path in MODEL_FILES if "modeling_" in path.stem} - FLOORS))
def test_what_travels(name: str) -> None:
    travels, new = set(), {name}
    while new:
        travels |= new
        new = set().union(*(siblings_of(SOURCE / "models" / f"{each}.py") for each in new)) - travels
    assert travels == TRAVELS[name]


def test_few_files_travel_with_cca() -> None:
    assert len(CCA) <= 15


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "scripts").glob("*.py"))], ids=name_of)
def test_file_says_what_it_is(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert path.name == "__init__.py" or ast.get_docstring(ast.parse(source)), "the file's head says what it is"


def public_names() -> list[str]:
    return importlib.import_module(PACKAGE).__all__


@pytest.mark.parametrize("name", public_names())
def test_public_name_is_documented(name: str) -> None:
    value = importlib.import_module(PACKAGE).__getattr__(name)
    # vars: an inherited docstring says nothing about this class.
    documented = value.__doc__ if inspect.isfunction(value) else vars(value).get("__doc__")
    assert documented and not documented.startswith(f"{name}("), f"{name} has no docstring of its own"
    if not inspect.isclass(value):
        return
    for method, member in vars(value).items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        function = function.fget if isinstance(function, property) else function
        if not inspect.isfunction(function) or method.startswith("_"):
            continue
        inherited = any(method in vars(base) for base in value.__mro__[1:])
        assert function.__doc__ or inherited, f"{name}.{method} has no docstring"


@pytest.mark.parametrize("name", [PACKAGE, f"{PACKAGE}.evaluation"])
def test_names_are_imported_at_their_first_use(name: str) -> None:
    package = importlib.import_module(name)
    tree = ast.parse(Path(package.__file__ or "").read_text(encoding="utf-8"))
    for_type_checkers = {
        (alias.name, node.module)
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert for_type_checkers == set(package._MODULE_OF_NAME.items())
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'CCAModle'"):
        package.CCAModle  # noqa: B018


def test_few_public_names() -> None:
    assert len(public_names()) <= 25


def takes_training_arguments(source: str) -> bool:
    """Whether a file has an annotation or a parameter that stands for the training arguments."""
    for node in ast.walk(ast.parse(source)):
        annotations = [node.annotation] if isinstance(node, ast.arg | ast.AnnAssign) else []
        annotations += [node.returns] if isinstance(node, ast.FunctionDef) else []
        named = isinstance(node, ast.arg) and node.arg == "training_args"
        if named or any("TrainingArguments" in ast.unparse(each) for each in annotations if each is not None):
            return True
    return False


def test_training_arguments_pass_through_few_files() -> None:
    files = [*FILES, *(ROOT / "scripts").glob("*.py")]
    takers = {name_of(path) for path in files if takes_training_arguments(path.read_text(encoding="utf-8"))}
    assert {"src/cca_hf/cli/train.py", "src/cca_hf/training/trainer.py"} <= takers and len(takers) <= 8, takers


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(args: CCATrainingArguments | None): ...", True),
        ("class A:\n    args: 'TrainingArguments'", True),
        ("async def f(*, training_args): ...", True),
        ("def read() -> 'tuple[ModelArguments, CCATrainingArguments]': ...", True),
        ("from x import CCATrainingArguments\nrun(CCATrainingArguments(lr=1))", False),
    ],
)
def test_training_arguments_are_seen(source: str, expected: bool) -> None:
    """The check itself."""
    assert takes_training_arguments(source) == expected
