"""Settings of the whole process for training on a CPU: for programs, never for library functions.

glibc returns each large block of memory to the kernel when it is freed, and the kernel clears every page again at its
next use: half the time of a training step with MobileNetV2 at 224 pixels. `accelerate launch` sets OMP_NUM_THREADS to
1 on a machine without a GPU: with two cores such a step took 1.5 times as long as with two threads.
"""

import ctypes
import os
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_LARGEST_INT = 2**31 - 1


def let_waiting_threads_sleep() -> None:
    """To be called before torch is imported, which reads the setting once.

    If waiting threads spin, any other process on the machine slows them down many times over.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def prepare_process(device: "torch.device | None" = None, cpu_threads: int | None = None) -> None:
    """Sets memory and threads (see `set_threads`) of a program that trains on a CPU.

    It changes nothing if `device` is an accelerator, or if there is one and no `device` is given.
    """
    import torch

    if device.type == "cpu" if device is not None else not torch.accelerator.is_available():
        if platform.libc_ver()[0] == "glibc":  # freed memory stays in the process until it ends
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
        set_threads(cpu_threads)


def set_threads(num_threads: int | None) -> int:
    """Sets and returns the number of threads of this process.

    `None` keeps PyTorch's choice, unless `accelerate launch` has left a single thread to the only process of the
    machine: it then gets all cores.
    """
    import torch

    left_at_one = "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    if num_threads is None and left_at_one and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 1:
        num_threads = os.cpu_count()
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    return torch.get_num_threads()
