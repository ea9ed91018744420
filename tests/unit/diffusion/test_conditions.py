"""Class labels and blends as a condition: null, dropout by draw, requests."""

import pytest
import torch

from diffusion_lit.diffusion.conditions import ClassCondition

BLENDS = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])


def test_the_null_has_the_form_of_y():
    condition = ClassCondition(3)
    assert torch.equal(condition.null(torch.tensor([0, 2])), torch.tensor([3, 3]))
    assert torch.equal(condition.null(BLENDS), torch.zeros(2, 3))


def test_blends_are_dropped_as_labels_are():
    condition, draw = ClassCondition(3), torch.tensor([0.05, 0.5])
    assert condition.drop(torch.tensor([0, 2]), draw, 0.1).tolist() == [3, 2]
    assert condition.drop(BLENDS, draw, 0.1).tolist() == [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


def test_without_classes_there_is_nothing_to_drop():
    condition, y = ClassCondition(0), torch.zeros(4, dtype=torch.int64)
    assert not condition.has_null
    assert condition.drop(y, torch.zeros(4), 1.0) is y


def test_requests_become_a_tensor_or_say_why_not():
    assert ClassCondition(3).to_tensor([0, 2]).dtype == torch.int64
    assert torch.equal(ClassCondition(3).to_tensor([(0.5, 0.5, 0.0), (0.0, 0.0, 1.0)]), BLENDS)
    with pytest.raises(ValueError, match="for each of the 2 classes"):
        ClassCondition(2).to_tensor([(0.5, 0.5, 0.0)])
    with pytest.raises(ValueError, match="Net takes no blends"):
        ClassCondition(3, "Net takes no blends").to_tensor([(0.5, 0.5, 0.0)])
