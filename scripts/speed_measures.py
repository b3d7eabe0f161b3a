"""Shared parts of the speed benchmarks: timing in turns, the matrix product of the machine, images, reports."""

import json
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cca_hf.training.run_record import processor_name

IMAGE_SIDE = 500  # pixels of the JPEG files, as in a typical catalogue
PEAK_SIZE = {"cpu": 2048, "cuda": 8192}  # rows of the square matrices that measure the peak speed of the machine


def time_in_turns(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function in each round. The functions run in turns, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            wait_for_device()
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median over the rounds of the ratio of two times that were measured one after the other."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def matmul_at_peak(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """A matrix product that uses the machine fully, and its number of operations."""
    size = PEAK_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return lambda: a @ b, 2.0 * size**3


def in_new_process(measure: Callable[..., Any], *arguments: Any) -> Any:
    """Runs `measure` in a new process, whose peak memory is that of the measured work.

    The processes start from one that has imported the libraries, and has used no device.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers.trainer"])
    with context.Pool(1) as pool:
        return pool.apply(measure, arguments)


def peak_memory_of(work: Callable[[], object], device: torch.device) -> float:
    """Peak growth of the memory in MiB; on a CPU from the high-water mark of the process (Linux only)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    before_kib = read_high_water_mark()
    work()
    return (read_high_water_mark() - before_kib) / 1024


def read_high_water_mark() -> int:
    """High-water mark in KiB. `ru_maxrss` is not used, because a new process inherits it from its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def machine_name() -> str:
    """The name of the processor and, if there is one, of the accelerator."""
    cpu = processor_name()
    return f"{cpu}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else cpu


def file_name(machine: str, measured: str = "speed") -> str:
    """`AMD EPYC` -> `speed_amd_epyc.json`."""
    return f"{measured}_{re.sub('[^a-z0-9]+', '_', machine.lower()).strip('_')}.json"


def write_jpegs(folder: Path, count: int) -> list[Path]:
    """Writes smooth random images with some noise, similar to photographs."""
    generator = np.random.default_rng(0)
    paths = [folder / f"{number:05}.jpg" for number in range(count)]
    for path in paths:
        coarse = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC)).astype(np.float32)
        grain = generator.normal(0, 8, smooth.shape)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def run_sections(
    sections: dict[str, Callable[[], dict[str, Any]]], setting: dict[str, Any], output: Path | None
) -> None:
    """Runs and prints every section, and updates speed_<machine>.json in the folder `output`, if given."""
    machine = machine_name()
    setting = {"torch": torch.__version__, "threads": torch.get_num_threads(), **setting}
    results: dict[str, Any] = {}
    for name, measure in sections.items():
        results[name] = {"setting": setting, **measure()}
        print(f"{name}: {json.dumps(results[name], indent=2)}", flush=True)
    if output is not None:
        path = output / file_name(machine)
        earlier = json.loads(path.read_text()) if path.exists() else {}
        output.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine, **earlier, **results}, indent=2) + "\n")
