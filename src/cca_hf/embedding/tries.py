"""Counts how often each shard was begun, to distinguish a worker that died from an image that kills its worker."""

MOST = 3


class Tries:
    """An actor beside the workers. It has its own file, so that its process imports nothing else."""

    def __init__(self) -> None:
        self._begun: dict[int, int] = {}

    def begin(self, shard: int) -> int:
        """Counts this try, and returns the number of tries."""
        self._begun[shard] = self._begun.get(shard, 0) + 1
        return self._begun[shard]
