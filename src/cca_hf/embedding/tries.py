"""How often each shard has been begun: what tells a worker that died from a picture that kills its worker."""

MOST = 3


class Tries:
    """An actor beside the workers. Alone in this file, so that its process imports nothing else."""

    def __init__(self) -> None:
        self._begun: dict[int, int] = {}

    def begin(self, shard: int) -> int:
        """Counts this try, and returns how many there have been."""
        self._begun[shard] = self._begun.get(shard, 0) + 1
        return self._begun[shard]
