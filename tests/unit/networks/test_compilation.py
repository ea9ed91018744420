"""Compiling a network: once, under the same names, and never again for other batch sizes."""

import pytest
import torch
from torch import nn

from diffusion_lit.networks.compilation import compile_network, run_eagerly


def test_a_network_is_compiled_for_training_alone(graphs):
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    names = list(net.state_dict())
    compile_network(net)
    for _ in range(3):
        net.train()(torch.randn(2, 4))
        with run_eagerly(net), torch.no_grad():
            net.eval()(torch.randn(3, 4))
    assert len(graphs) == 1
    net.eval()(torch.randn(3, 4))  # the backend does count: outside of the context this compiles again
    assert len(graphs) == 2
    assert list(net.state_dict()) == names


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_kernels_are_chosen_by_rule(monkeypatch, cuda_graphs):
    passed = []
    monkeypatch.setattr(nn.Module, "compile", lambda net, options: passed.append(options))
    compile_network(nn.Linear(1, 1), cuda_graphs)
    assert passed == [{"deterministic": True, "triton.cudagraphs": cuda_graphs}]
