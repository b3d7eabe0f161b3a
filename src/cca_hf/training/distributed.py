"""Joins the tensors of all processes, so that the loss sees the triplets of the joined batch."""

from collections.abc import Sequence

import torch
import torch.distributed as dist


class _GatherWithGradient(torch.autograd.Function):
    """Forward: the rows of all processes. Backward: this process's rows of the gradient.

    Every process computes the same loss, so it only needs the gradient of its own rows. DistributedDataParallel (FSDP,
    DeepSpeed) *averages* the parameters' gradients, but those of a joined batch *add up*: hence the factor.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: torch.Tensor) -> torch.Tensor:
        return _all_gather(tensor)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.chunk(dist.get_world_size())[dist.get_rank()] * dist.get_world_size()


def gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """`(batch, ...)` on each process -> `(processes * batch, ...)`, in the order of the ranks; the same on all.

    Every process must compute the same loss from it, and the parameters' gradients must be averaged.
    """
    if not _several_processes():
        return tensor
    return _GatherWithGradient.apply(tensor) if tensor.requires_grad else _all_gather(tensor)


def copy_from_first_process(tensors: Sequence[torch.Tensor]) -> None:
    """Overwrites the tensors with those of the first process."""
    if _several_processes():
        for tensor in tensors:
            dist.broadcast(tensor.data, src=0)


def average_over_processes(tensors: Sequence[torch.Tensor]) -> None:
    """Overwrites each tensor with its mean over the processes."""
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
