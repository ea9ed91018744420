"""Undo the change that a skipped step makes to the running statistics of batch norms."""

import torch
from torch import Tensor, nn


class RunningStatistics:
    """A copy of the running statistics of a network's batch norms, as of the last step that was not skipped.

    A forward pass changes them at once, before it is known whether the step is
    skipped.
    """

    def __init__(self, net: nn.Module):
        norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self.buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self.saved = [buffer.clone() for buffer in self.buffers]

    def end_step(self, is_skipped: Tensor) -> None:
        """Save the statistics, or restore those before the step if it was skipped. The CPU does not wait."""
        for buffer, saved in zip(self.buffers, self.saved, strict=True):
            saved.copy_(torch.where(is_skipped, saved, buffer))
            buffer.copy_(saved)

    def restore(self) -> None:
        """Restore the statistics of the last step, after a step that did not reach its end."""
        for buffer, saved in zip(self.buffers, self.saved, strict=True):
            buffer.copy_(saved)
