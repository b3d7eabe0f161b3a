"""Measures `cca serve` with many clients, with and without batches; then sends a thousand invalid requests.

    python scripts/benchmark_server.py --output docs/benchmarks      # 3 minutes; writes server_<machine>.json
    python scripts/benchmark_server.py --model out --picture_side 500
    python scripts/benchmark_server.py --seconds 10 --bad_requests 100           # half a minute

Two servers, one with `--max_batch` and one with `--max_batch 1`, receive requests in turns, so that both run under the
same conditions. The clients are threads of a separate process. A client sends a JPEG as the body, waits for the
vectors of all attributes, and sends the next. The default model is that of `scripts/demo.py`, with random weights.

- load: failures, requests per second, milliseconds at the 50th and 95th percentile, images per pass of the model,
  resident memory after the warm-up and after each round; median ratio of the throughput with and without batches.
- bad_requests: the status for each kind of request, whether the server answers a valid request as before, memory.
"""

import argparse
import base64
import contextlib
import http.client
import io
import json
import multiprocessing
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

IMAGE = {"Content-Type": "image/jpeg"}
JSON = {"Content-Type": "application/json"}
PATIENCE = 300.0  # seconds to wait for an answer
ROUNDS = 6
WARM_UP = 3.0  # seconds, but not longer than the load
FILES = 64
CLIENTS_OF_BAD_REQUESTS = 16
MAX_BODY = 20_000_000


class Server:
    """A process of `cca serve`."""

    def __init__(self, model: str, max_batch: int, device: str | None):
        flags = ["--port", "0", "--max_batch", str(max_batch), "--max_body", str(MAX_BODY)]
        flags += ["--device", device] if device else []
        self.process = start_process(["-m", "cca_hf.cli.main", "serve", "--model", model, *flags])
        assert self.process.stdout is not None
        found = re.search(r"http://([\d.]+):(\d+)", self.process.stdout.readline())
        if found is None:
            raise SystemExit("the server did not start; see its message above")
        self.host, self.port = found[1], int(found[2])

    def metric(self, name: str) -> float:
        _, text = ask(http.client.HTTPConnection(self.host, self.port), "GET", "/metrics", b"", {})
        return sum(float(value) for value in re.findall(rf"(?m)^{name}(?:{{.*}})? (\S+)$", text.decode()))

    def megabytes(self) -> float:
        return self.metric("process_resident_memory_bytes") / 1e6

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait()


def start_process(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)


@contextlib.contextmanager
def running(model: str, max_batch: int, device: str | None) -> Iterator[Server]:
    server = Server(model, max_batch, device)
    try:
        yield server
    finally:
        server.stop()


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: Any, headers: dict) -> tuple[int, bytes]:
    connection.timeout = PATIENCE
    connection.request(method, path, body, headers, encode_chunked="Transfer-Encoding" in headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def load(host: str, port: int, files: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """Sends requests for some seconds, in a separate process: seconds per answer, and counts of failures."""
    until = time.monotonic() + seconds
    waited: list[list[float]] = [[] for _ in range(clients)]
    failed: Counter[str] = Counter()

    def send_requests(client: int) -> None:
        connection = http.client.HTTPConnection(host, port)
        turn = client
        while time.monotonic() < until:
            started = time.perf_counter()
            try:
                status, _ = ask(connection, "POST", "/", files[turn % len(files)], IMAGE)
                reason = "" if status == 200 else f"HTTP {status}"
            except OSError as error:
                reason = type(error).__name__
            if reason:
                failed[reason] += 1
                connection.close()
            else:
                waited[client].append(time.perf_counter() - started)
            turn += 1
        connection.close()

    started = time.monotonic()
    threads = [threading.Thread(target=send_requests, args=[client]) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"waited": sum(waited, []), "failed": dict(failed), "seconds": time.monotonic() - started}


def measure_load(servers: dict[str, Server], files: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """Sends requests to each server for `seconds`, in rounds."""
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    passes = {}
    memory: dict[str, list[float]] = {name: [] for name in servers}
    with multiprocessing.get_context("spawn").Pool(1) as generator:
        for turn in range(ROUNDS + 1):
            for name, server in servers.items():
                slice_seconds = seconds / ROUNDS if turn else min(WARM_UP, seconds)
                done = generator.apply(load, (server.host, server.port, files, clients, slice_seconds))
                memory[name].append(server.megabytes())
                if turn:
                    rounds[name].append(done)
                else:
                    passes[name] = [server.metric(f"cca_batch_pictures_{each}") for each in ("sum", "count")]
    results: dict[str, Any] = {}
    rates = {name: [len(each["waited"]) / each["seconds"] for each in done] for name, done in rounds.items()}
    for name, done in rounds.items():
        waited = sorted(sum((each["waited"] for each in done), []))
        pictures, count = (
            servers[name].metric(f"cca_batch_pictures_{each}") - before
            for each, before in zip(("sum", "count"), passes[name], strict=True)
        )
        results[name] = {
            "answers": len(waited),
            "failures": sum((Counter(each["failed"]) for each in done), Counter()),
            "seconds": sum(each["seconds"] for each in done),
            "answers_per_second": len(waited) / sum(each["seconds"] for each in done),
            "p50_ms": 1000 * waited[len(waited) // 2],
            "p95_ms": 1000 * waited[int(0.95 * len(waited))],
            "pictures_per_pass": pictures / count,
            "megabytes_after_warm_up": memory[name][0],
            "megabytes_each_round": memory[name][1:],
        }
    batched, single = (rates[name] for name in servers)
    results["throughput_over_single"] = statistics.median(a / b for a, b in zip(batched, single, strict=True))
    return results


def bad_requests(picture: bytes) -> dict[str, tuple[str, Any, dict[str, str]]]:
    """Path, body and headers of each kind of invalid request."""
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    text = base64.b64encode(picture).decode()
    return {
        "truncated": ("/", picture[: len(picture) // 2], IMAGE),
        "huge": ("/", bytes(MAX_BODY + 1), IMAGE),
        "huge_in_chunks": ("/", [bytes(1_000_000)] * 30, {**IMAGE, "Transfer-Encoding": "chunked"}),
        "text_as_a_picture": ("/", b"no picture " * 1000, IMAGE),
        "wrong_content_type": ("/", picture, {"Content-Type": "text/html"}),
        "bomb": ("/", bomb.getvalue(), {"Content-Type": "image/png"}),
        "bomb_as_base64": ("/", json.dumps({"inputs": [text, base64.b64encode(bomb.getvalue()).decode()]}), JSON),
        "unknown_attribute": ("/?attribute=no_such", picture, IMAGE),
        "unknown_parameter": ("/", json.dumps({"inputs": text, "parameters": {"top": 3}}), JSON),
        "broken_json": ("/", '{"inputs": "' + text, JSON),
        "too_many_pictures": ("/", json.dumps({"inputs": [text] * 33}), JSON),
        "private_address": ("/", json.dumps({"inputs": "http://169.254.169.254/latest/meta-data/"}), JSON),
        "wrong_path": ("/v1/embed", picture, IMAGE),
    }


def measure_bad_requests(server: Server, picture: bytes, count: int) -> dict[str, Any]:
    kinds = list(bad_requests(picture).items())
    answers: dict[str, Counter[str]] = {name: Counter() for name, _ in kinds}
    good = ("POST", "/", picture, IMAGE)
    before = ask(http.client.HTTPConnection(server.host, server.port), *good)
    memory = server.megabytes()

    def send(number: int) -> None:
        name, (path, body, headers) = kinds[number % len(kinds)]
        with contextlib.closing(http.client.HTTPConnection(server.host, server.port)) as connection:
            try:
                answers[name][str(ask(connection, "POST", path, body, headers)[0])] += 1
            except OSError as error:
                answers[name][type(error).__name__] += 1

    with ThreadPoolExecutor(CLIENTS_OF_BAD_REQUESTS) as pool:
        list(pool.map(send, range(count)))
    status, then = ask(http.client.HTTPConnection(server.host, server.port), *good)
    total = sum(answers.values(), Counter())
    return {
        "requests": count,
        "answered_4xx": sum(number for answer, number in total.items() if re.fullmatch(r"4\d\d", answer)),
        "answers": {name: dict(each) for name, each in answers.items()},
        "same_answer_to_a_good_request": (status, then) == before and status == 200,
        "megabytes_before": memory,
        "megabytes_after": server.megabytes(),
    }


def save_demo_model(folder: Path) -> str:
    from transformers import AutoConfig

    from cca_hf import CCAModel
    from cca_hf.data.shapes import SHAPE_ATTRIBUTES
    from cca_hf.recipes.shapes import BACKBONE, HIDDEN_SIZE, IMAGE_SIZE

    settings = json.loads(BACKBONE)
    backbone = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = CCAModel.from_backbone(backbone, SHAPE_ATTRIBUTES, image_size=IMAGE_SIZE, hidden_size=HIDDEN_SIZE)
    model.save_pretrained(folder)
    return str(folder)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint to serve (default: the model of the demo, with random weights)")
    parser.add_argument("--device", help="device of the servers (default: an accelerator, if there is one)")
    parser.add_argument("--clients", type=int, default=64, help="number of clients (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="duration of the load for each server (%(default)s)"
    )
    parser.add_argument(
        "--max_batch", type=int, default=32, help="images in a batch of the first server (%(default)s)"
    )
    parser.add_argument(
        "--picture_side", type=int, default=224, help="width and height of the JPEGs in pixels (%(default)s)"
    )
    parser.add_argument("--bad_requests", type=int, default=1000, help="number of invalid requests (%(default)s)")
    parser.add_argument("--output", type=Path, help="folder for server_<machine>.json")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    from speed_measures import file_name, machine_name, write_jpegs

    with tempfile.TemporaryDirectory() as work, contextlib.ExitStack() as stack:
        files = []
        for path in write_jpegs(Path(work), FILES):
            file = io.BytesIO()
            Image.open(path).resize([options.picture_side] * 2).save(file, "JPEG", quality=90)
            files.append(file.getvalue())
        model = options.model or save_demo_model(Path(work) / "model")
        servers = {
            "batched": stack.enter_context(running(model, options.max_batch, options.device)),
            "single": stack.enter_context(running(model, 1, options.device)),
        }
        results = {
            "machine": machine_name(),
            "setting": {name: value for name, value in vars(options).items() if name != "output"},
            "load": measure_load(servers, files, options.clients, options.seconds),
            "bad_requests": measure_bad_requests(servers["batched"], files[0], options.bad_requests),
        }
    print(json.dumps(results, indent=2))
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / file_name(results["machine"], "server")).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
