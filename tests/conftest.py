"""What every test stands on: no network, caches of their own, one thread a process, real data where there is some."""

import atexit
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from .warm_python import ALL, TORCH, WarmPython, shared

# Before anything imports torch, transformers or datasets: they read these at import, and subprocesses inherit them.
_hf_home = tempfile.mkdtemp(prefix="cca_hf_tests_")
atexit.register(shutil.rmtree, _hf_home, ignore_errors=True)
os.environ.update(
    HF_HOME=_hf_home,
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)
# Tests run side by side; with more threads than cores, OpenMP's spin-waits cost more than the threads win.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
for _variable in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_EVALUATE_CACHE"):
    os.environ.pop(_variable, None)  # else they would win over HF_HOME

REPOSITORY = Path(__file__).resolve().parent.parent
# Files that take a minute or more come first: at the end, one worker would wait for the other.
SLOWEST = ("test_benchmark_speed", "test_benchmark_server", "test_ray_engine", "test_interruption", "test_tutorials")
SLOWEST += ("test_retrieval_memory", "test_publishing", "test_space", "test_remote_code", "test_height_and_width")
SLOWEST += ("test_notebooks",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in SLOWEST)  # otherwise in the order of their names


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: `CCA_SHARED_DATA`, or `../shared/data` beside the checkout; skips without one."""
    folder = Path(os.environ.get("CCA_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found in {folder}; set CCA_SHARED_DATA to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def warm_python() -> Iterator[WarmPython]:
    """Starts processes that have imported the libraries."""
    with contextlib.closing(shared(ALL)) as python:
        yield python


@pytest.fixture(scope="session")
def warm_torch() -> Iterator[WarmPython]:
    """Starts processes that have imported torch alone: for another Hub, other caches, or without a library."""
    with contextlib.closing(shared(TORCH)) as python:
        yield python


@pytest.fixture
def mount_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a new file system of some megabytes, where this machine allows it, until the end of the test."""
    mounted = []

    def mount(megabytes: int) -> Path:
        if os.geteuid() != 0 or not shutil.which("mount"):
            pytest.skip("mounting a small disk needs root")
        place = tmp_path / "disk"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", place]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this machine mounts no small disk: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Chromium that reaches no other machine. While it is open, nothing else of this process can use asyncio."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: the page is not opened")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium on the PATH: the page is not opened in a real browser")
    with playwright.sync_playwright() as started:
        arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
        browser = started.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def image_server() -> Iterator[tuple[str, dict[str, bytes | str]]]:
    """A server on the loopback interface: its URL, and its answers by path: bytes, "not found" or "hang up"."""
    answers: dict[str, bytes | str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path, "not found")
            if answer == "hang up":
                self.close_connection = True
                return
            self.send_response(200 if isinstance(answer, bytes) else 404)
            self.end_headers()
            self.wfile.write(answer if isinstance(answer, bytes) else b"<html>404</html>")

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=[0.02], daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", answers
    server.shutdown()
    server.server_close()
    thread.join()
