"""The head's cross-entropy equals torch's, with every gradient that is asked for."""

import pytest
import torch
from torch.nn import functional as F

from catalens.model import loss
from catalens.model.loss import LanguageHead, linear_cross_entropy

L, H, V = 23, 16, 101


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(loss, "CHUNK", 5 * V)  # five positions at a time, three in the last


def tensors(dtype=torch.float64):
    torch.manual_seed(0)
    return torch.randn(L, H, dtype=dtype), torch.randn(V, H, dtype=dtype), torch.randint(V, (L,))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (0, 1)])
def test_value_and_gradients_are_those_of_torch(smoothing: float, frozen: tuple[int, ...]):
    hidden, head, targets = tensors()
    leaves = [t.clone().requires_grad_(n not in frozen) for n, t in enumerate((hidden, head, hidden, head))]
    leaves[2].requires_grad_(leaves[0].requires_grad)
    leaves[3].requires_grad_(leaves[1].requires_grad)
    ours = linear_cross_entropy(leaves[0], leaves[1], targets, smoothing)
    theirs = F.cross_entropy(leaves[2] @ leaves[3].T, targets, reduction="sum", label_smoothing=smoothing)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    if len(frozen) < 2:
        (ours / 7).backward()
        (theirs / 7).backward()
        for mine, other in ((leaves[0], leaves[2]), (leaves[1], leaves[3])):
            assert (mine.grad is None) == (other.grad is None)
            assert mine.grad is None or torch.allclose(mine.grad, other.grad, rtol=1e-5, atol=1e-7)


def test_no_label_is_no_loss_and_zero_gradients():
    hidden, head, _ = tensors()
    hidden.requires_grad_()
    head.requires_grad_()
    total = linear_cross_entropy(hidden[:0], head, torch.zeros(0, dtype=torch.long))
    total.backward()
    assert total.item() == 0
    assert not head.grad.any()
    assert not hidden.grad.any()


def test_autocast_is_kept():
    hidden, head, targets = tensors(torch.float32)
    head.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(hidden, head, targets)
        theirs = F.cross_entropy(F.linear(hidden, head).float(), targets, reduction="sum")
    ours.backward()
    assert head.grad.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-3)
    assert ours.item() != pytest.approx(F.cross_entropy(hidden @ head.T, targets, reduction="sum").item(), rel=1e-7)


@pytest.mark.parametrize("count", [3, 7, 483])
def test_the_mean_of_a_gradient_in_bf16_is_divided_in_fp32(count: int):
    hidden, head, targets = (t.to(torch.bfloat16) if t.is_floating_point() else t for t in tensors())
    norms = []
    for divisor in (1, count):
        leaf = head.clone().requires_grad_()
        (linear_cross_entropy(hidden, leaf, targets) / divisor).backward()
        norms.append(float(leaf.grad.double().norm()) * divisor)
    assert norms[1] == pytest.approx(norms[0], rel=3e-4)  # 1/483 in bf16 is 0.24 % too large


def test_without_gradients_none_is_made(monkeypatch):
    hidden, head, targets = tensors()
    expected = linear_cross_entropy(hidden, head, targets)
    made = []
    monkeypatch.setattr(loss.torch, "zeros_like", lambda t: made.append(t))
    with torch.no_grad():
        total = linear_cross_entropy(hidden, head.requires_grad_(), targets)
    assert total.item() == expected.item()
    assert made == []


def test_a_head_gives_scores_or_their_loss():
    hidden, weight, targets = tensors(torch.float32)
    head = LanguageHead(H, V, bias=False)
    head.weight.data.copy_(weight)
    assert torch.equal(head(hidden), F.linear(hidden, weight))
    assert head(hidden, targets=targets).item() == pytest.approx(
        F.cross_entropy(hidden @ weight.T, targets, reduction="sum").item(), rel=1e-5
    )


def test_scores_of_all_positions_never_exist_at_once():
    hidden, head, targets = tensors()
    sizes = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    with Watch():
        linear_cross_entropy(hidden.requires_grad_(), head.requires_grad_(), targets)
    assert sizes
    assert max(sizes) <= max(5 * V, V * H)
