"""Attention without a mask: of padded rows, and of packed samples all at once or one after the other."""

import pytest
import torch
from torch.nn import functional as F

from catalens.model import attention

ENDS = torch.tensor([0, 5, 12, 12, 16], dtype=torch.int32)  # one of them empty


@pytest.fixture
def states():
    """Query of 4 heads, keys and values of 2, [1, heads, T, D]."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, 16, 8, generator=generator) for heads in (4, 2, 2)]


def expected(states):
    query, key, value = states[0], *(one.repeat_interleave(2, 1) for one in states[1:])
    sample = torch.tensor([0] * 5 + [1] * 7 + [3] * 4)
    mask = (sample[:, None] == sample) & torch.ones(16, 16, dtype=torch.bool).tril()
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3).transpose(1, 2)


def test_packed_samples_see_themselves_only(states):
    seen, _ = attention.causal_attention(
        torch.nn.Module(), *states, None, cu_seq_lens_q=ENDS, max_length_q=7, scaling=0.3, dropout=0.0
    )
    torch.testing.assert_close(seen, expected(states))


def test_the_operator_of_torch_is_given_what_it_takes(states, monkeypatch):
    def operator(q, k, v, ends, ends_of_keys, longest, longest_key, *, scale, window_size):
        assert q.shape == k.shape == v.shape == (16, 4, 8)
        assert (longest, longest_key, window_size) == (7, 7, (-1, 0))
        assert ends is ends_of_keys
        assert ends.dtype == torch.int32
        back = [one.transpose(0, 1)[None] for one in (q, k, v)]
        return attention._one_by_one(*back, ends, scale, 0.0)[0]

    monkeypatch.setattr(attention, "varlen_attn", operator)
    query, key, value = states
    seen = attention._all_at_once(query, key, value, ENDS, 7, 0.3)
    torch.testing.assert_close(seen, expected(states))
    narrow = attention._all_at_once(query, key, value.bfloat16(), ENDS, 7, 0.3)
    assert narrow.dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_is_the_same_with_its_gradients(states):
    there = [one.cuda().bfloat16().requires_grad_() for one in states]
    seen, _ = attention.causal_attention(
        torch.nn.Module(), *there, None, cu_seq_lens_q=ENDS.cuda(), max_length_q=7, scaling=0.3
    )
    here = [one.clone().requires_grad_() for one in states]
    torch.testing.assert_close(seen.float().cpu(), expected(here), atol=2e-2, rtol=2e-2)
    seen.float().pow(2).sum().backward()
    expected(here).pow(2).sum().backward()
    for one, other in zip(there, here, strict=True):
        assert (one.grad.float().cpu() - other.grad).norm() < 2e-2 * other.grad.norm()
