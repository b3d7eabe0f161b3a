"""Tensors of all processes as one, so that the loss sees the triplets of the joined batch."""

from collections.abc import Sequence

import torch
import torch.distributed as dist


class _GatherWithGradient(torch.autograd.Function):
    """All processes' rows forward; this process's rows of the gradient backward.

    Every process computes the same loss from the same gathered tensor, so the gradient of its own rows is all it
    needs: nothing is sent on the way back. DistributedDataParallel (FSDP, DeepSpeed) then *averages* the parameters'
    gradients, where those of a joined batch *add up*; the factor makes one of the other.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: torch.Tensor) -> torch.Tensor:
        return _all_gather(tensor)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.chunk(dist.get_world_size())[dist.get_rank()] * dist.get_world_size()


def gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """`(batch, ...)` on each process -> `(processes * batch, ...)`, in the order of the ranks; the same on all.

    The loss computed from it has to be the same on all processes too, and the parameters' gradients averaged.
    """
    if not _several_processes():
        return tensor
    return _GatherWithGradient.apply(tensor) if tensor.requires_grad else _all_gather(tensor)


def copy_from_first_process(tensors: Sequence[torch.Tensor]) -> None:
    """Makes them, in place, what they are on the first process."""
    if _several_processes():
        for tensor in tensors:
            dist.broadcast(tensor.data, src=0)


def average_over_processes(tensors: Sequence[torch.Tensor]) -> None:
    """Makes each of them, in place, its mean over the processes."""
    if _several_processes():
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _all_gather(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)
