"""Draws batches on every rank through accelerate, and writes them down. Run by `test_sampler_distributed.py`."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, skip_first_batches
from torch.utils.data import DataLoader, Dataset

from cca_hf.data.sampler import AttributeBatchSampler


class Keys(Dataset):
    def __len__(self) -> int:
        return 120

    def __getitem__(self, key: tuple[int, int]) -> torch.Tensor:
        return torch.tensor(key)


accelerator = Accelerator(cpu=True)
labels = np.stack([np.arange(120) % 6, np.arange(120) // 7], axis=1)
sampler = AttributeBatchSampler(labels, batch_size=8, images_per_value=2)
loader = accelerator.prepare(DataLoader(Keys(), batch_sampler=sampler, collate_fn=torch.stack))
result = {
    "processes": accelerator.num_processes,
    "length": len(loader),
    # a bare loop: nobody calls set_epoch
    "epochs": [[batch.tolist() for batch in loader] for _ in range(2)],
}
loader.set_epoch(1)
result["rest of epoch 1"] = [batch.tolist() for batch in skip_first_batches(loader, 5)]
result["epoch of the sampler"] = sampler.epoch
Path(sys.argv[1], f"rank-{accelerator.process_index}.json").write_text(json.dumps(result))
accelerator.wait_for_everyone()
os._exit(0)  # gloo's threads now and then abort a process that tears its groups down; all is written by now
