"""Two real processes: different batches on each rank and in each epoch, and the rest of an epoch after a resume."""

import json
from pathlib import Path

import numpy as np

from cca_hf.data.sampler import AttributeBatchSampler


def test_two_ranks_share_the_stream(tmp_path, warm_python):
    warm_python.run_on_ranks(2, Path(__file__).with_name("draw_on_two_ranks.py"), tmp_path)
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    labels = np.stack([np.arange(120) % 6, np.arange(120) // 7], axis=1)
    sampler = AttributeBatchSampler(labels, batch_size=8, images_per_value=2)
    for rank, drawn in enumerate(ranks):
        assert (drawn["processes"], drawn["length"]) == (2, 8)
        for epoch in range(2):
            sampler.set_epoch(epoch)
            stream = [[list(key) for key in batch] for batch in sampler]
            # 15 batches for two ranks: the first comes once more, so that both take 8 steps
            assert drawn["epochs"][epoch] == (stream + stream[:1])[rank::2]
        assert drawn["rest of epoch 1"] == drawn["epochs"][1][5:]
        assert drawn["epoch of the sampler"] == 1
    for epoch in range(2):
        assert not [batch for batch in ranks[0]["epochs"][epoch][1:] if batch in ranks[1]["epochs"][epoch]]
    assert ranks[0]["epochs"][0] != ranks[0]["epochs"][1]
