"""What `torch.nn.DataParallel` does on several GPUs, on the CPU: replicas without parameters, scatter and gather."""

import torch
from torch import Tensor, nn


class CPUReplicas(nn.Module):
    """Takes the place of `nn.DataParallel(net, devices)`."""

    def __init__(self, net: nn.Module, devices: list):
        super().__init__()
        self.net, self.count, self.calls = net, len(devices), 0

    def forward(self, *inputs: Tensor) -> Tensor:
        chunks = zip(*[x.chunk(self.count) for x in inputs], strict=True)
        outputs = [replica(*chunk) for replica, chunk in zip(replicate(self.net, self.count), chunks, strict=True)]
        self.calls += len(outputs)
        return torch.cat(outputs)


def replicate(net: nn.Module, count: int) -> list[nn.Module]:
    """Copies as torch.nn.parallel.replicate makes them: buffers are kept, parameters become plain attributes."""
    modules = list(net.modules())
    replicas = []
    for _ in range(count):
        copies = {module: module._replicate_for_data_parallel() for module in modules}
        for module, copy in copies.items():
            for name, child in module._modules.items():
                setattr(copy, name, copies[child]) if child is not None else None
            for name, parameter in module._parameters.items():
                if parameter is None:  # a convolution without bias
                    copy._parameters[name] = None
                else:
                    setattr(copy, name, parameter.view_as(parameter))  # gradients flow back to the master
        replicas.append(copies[net])
    assert not list(replicas[0].parameters())
    return replicas
