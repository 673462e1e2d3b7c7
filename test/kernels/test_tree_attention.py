# SPDX-License-Identifier: Apache-2.0
"""Rows of a tree of answers against attention with the same mask in float32."""

import pytest
import torch

from nvila_ros.kernels import reference, tree_attention

# R rows, H query heads, Hkv key-value heads, d head width, S slots, P slots of the prompt
SHAPES = [
    (8, 28, 4, 128, 1536, 1093),
    (8, 12, 2, 128, 256, 240),
    (3, 4, 2, 64, 90, 64),
    (32, 4, 4, 64, 128, 63),
    (1, 32, 8, 128, 70, 1),
    (32, 32, 8, 128, 4096, 4000),
]
TOLERANCE = 2e-3  # of the norm: float16 weights and values, float32 sums


def make(num_rows, num_heads, num_kv_heads, width, num_slots, num_prompt, device, dtype):
    """Random rows; what lies past the last key in sight is poison."""
    generator = torch.Generator().manual_seed(num_rows + num_prompt)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    query = normal(num_rows, num_heads, width)
    keys, values = (normal(num_kv_heads, num_slots, width) for _ in range(2))
    for cache in (keys, values):
        cache[:, num_prompt + num_rows :] = torch.nan
    ancestors = torch.rand(num_rows, num_rows, generator=generator) < 0.3
    paths = torch.eye(num_rows, dtype=torch.bool) | ancestors.tril()
    mask = torch.cat((torch.ones(num_rows, num_prompt, dtype=torch.bool), paths), dim=1)
    return query, keys, values, mask.to(device)


def expected(query, keys, values, num_prompt, mask):
    num_keys = num_prompt + len(query)
    caches = [cache.float().nan_to_num(0.0) for cache in (keys, values)]
    return reference.attention_rows(query.float(), *caches, num_keys, mask)


@pytest.mark.parametrize("shape", SHAPES[1:3])
def test_without_a_gpu_the_masked_twin_answers(shape):
    query, keys, values, mask = make(*shape, "cpu", torch.float32)
    got = tree_attention.attend(query, keys, values, shape[-1], mask)
    assert torch.allclose(got, expected(query, keys, values, shape[-1], mask), atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_see_the_prompt_and_their_own_path(shape):
    query, keys, values, mask = make(*shape, "cuda", torch.float16)
    got = tree_attention.attend(query, keys, values, shape[-1], mask).float()
    wanted = expected(query, keys, values, shape[-1], mask)
    assert torch.isfinite(got).all()
    assert float((got - wanted).norm() / wanted.norm()) < TOLERANCE
