"""Causal attention of training, without a mask: over rows padded on the right, or packed into one.

    padded  [B, T]                                  no token looks to its right, so none sees the padding
    packed  [1, T], cu_seq_lens_q [0, 66, 137, ...] each sample sees itself only

A mask of T x T would take the memory of a batch, and keeps sdpa from its flash kernel. Packed samples go through
torch's varlen attention on a GPU that has it, and one after the other elsewhere. `CAUSAL` names it to transformers
(`attn_implementation`); a batch with an `attention_mask`, as generation has it, goes through plain sdpa.
"""

from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None

CAUSAL = "causal"


def causal_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend over [B, heads, T, D]; gives [B, T, heads, D].

    Args:
        module: the attention layer; `is_causal` where it is one of a decoder.
        query, key, value: keys and values may have fewer heads.
        attention_mask: for sdpa, where there is one.
        cu_seq_lens_q: [samples + 1] int32, where each packed sample begins and the last ends, B being 1.
        max_length_q: tokens of the longest sample, or more.
        **kwargs: `scaling`, `dropout` and what else transformers passes on.
    """
    if cu_seq_lens_q is None or attention_mask is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    scale = kwargs.get("scaling")
    flash = query.is_cuda and value.dtype in (torch.float16, torch.bfloat16) and not kwargs.get("dropout")
    if flash and varlen_attn is not None:
        return _all_at_once(query, key, value, cu_seq_lens_q, max_length_q, scale), None
    seen: Any = _one_by_one(query, key, value, cu_seq_lens_q, scale, kwargs.get("dropout") or 0.0)
    return seen, None


def _all_at_once(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, longest: int, scale: float | None
) -> torch.Tensor:
    # autocast does not know the operator, and the rotary embedding may have left queries and keys in fp32
    q, k, v = (states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value))  # [T, heads, D]
    groups = q.shape[1] // k.shape[1]  # not every torch lets keys have fewer heads
    k, v = (k, v) if groups == 1 else (states.repeat_interleave(groups, 1) for states in (k, v))
    assert varlen_attn is not None
    out: Any = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale, window_size=(-1, 0))
    return out[None]


@torch.compiler.disable()  # how long each sample is, is known on the host
def _one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, scale: float | None, drop: float
) -> torch.Tensor:
    lengths = ends.diff().tolist()
    samples = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    gqa = query.shape[1] != key.shape[1]
    seen = [
        F.scaled_dot_product_attention(q, k, v, dropout_p=drop, is_causal=True, scale=scale, enable_gqa=gqa)
        for q, k, v in samples
        if q.shape[2]
    ]
    return torch.cat(seen, dim=2).transpose(1, 2)


def causal_mask(
    *,
    q_length: int,
    kv_length: int,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    **kwargs: Any,
) -> torch.Tensor | None:
    """Make sdpa's mask where one is needed; None for whole rows without a mask within the window of attention."""
    if attention_mask is None and q_length == kv_length and (local_size is None or kv_length <= local_size):
        return None
    sizes = {"q_length": q_length, "kv_length": kv_length, "local_size": local_size}
    return sdpa_mask(attention_mask=attention_mask, **sizes, **kwargs)


AttentionInterface.register(CAUSAL, causal_attention)
AttentionMaskInterface.register(CAUSAL, causal_mask)
