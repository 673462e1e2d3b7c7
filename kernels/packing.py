# SPDX-License-Identifier: Apache-2.0
"""Int4 weights as checkpoints store them -> one form: codes, zero points and scales per group.

Letters: N outputs, K inputs, G = K / group groups of one output, W = columns / 8 words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CODES_PER_WORD = 8  # four bits each in an int32
# Words at a time that are transposed on a CPU.
TRANSPOSED_WIDTH = 64
TRANSPOSED_DEPTH = 448
ROWS_GROUP = 128  # inputs that share a scale and zero point in RowsInt4
SYMMETRIC_ZERO = 8  # the code that stands for 0 where a checkpoint stores no zero points
SEQUENTIAL = (0, 1, 2, 3, 4, 5, 6, 7)
# AutoAWQ's GEMM layout: nibble i (bits 4i to 4i + 3) of a word holds the word's column order[i].
AWQ_GEMM_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, kw_only=True)
class Int4Weight:
    """One linear's weight; w[n, k] = (code[n, k] - zeros[n, k // group]) * scales[n, k // group].

    qweight: (N, K / 8) int32, eight codes a word, the lowest bits first
    zeros: (N, G) uint8 in 0..15
    scales: (N, G) float, in the checkpoint's own dtype: dequantizing in it is exact by bits
    """

    qweight: Tensor
    zeros: Tensor
    scales: Tensor


def pack(codes: Tensor, order: Sequence[int] = SEQUENTIAL) -> Tensor:
    """(R, C) uint8 in 0..15, C a multiple of 8 -> (R, C / 8) int32.

    Byte b of a word holds nibbles 2b and 2b + 1: bytes are four times less to move than words.
    """
    columns = codes.contiguous().unflatten(1, (-1, CODES_PER_WORD))  # (R, W, 8)
    words = torch.empty(*columns.shape[:2], 4, dtype=torch.uint8, device=codes.device)
    for byte in range(4):
        low, high = order[2 * byte], order[2 * byte + 1]
        words[..., byte] = columns[..., low] | columns[..., high] << 4
    return words.view(torch.int32).flatten(1)


def unpack(words: Tensor, order: Sequence[int] = SEQUENTIAL) -> Tensor:
    """(R, W) int32 -> (R, 8 W) uint8 in 0..15."""
    rows, width = words.shape
    stored = words.contiguous().view(torch.uint8).view(rows, width, 4)
    codes = torch.empty(rows, width, CODES_PER_WORD, dtype=torch.uint8, device=words.device)
    for byte in range(4):
        codes[..., order[2 * byte]] = stored[..., byte] & 15
        codes[..., order[2 * byte + 1]] = stored[..., byte] >> 4
    return codes.flatten(1)


def transpose_codes(
    words: Tensor,
    order: Sequence[int] = SEQUENTIAL,
    to_order: Sequence[int] = SEQUENTIAL,
    out: Tensor | None = None,
) -> Tensor:
    """(K, N / 8) int32, nibble i of word w = column 8 w + order[i] -> (N, K / 8) in `to_order`.

    What `pack(unpack(words, order).t(), to_order)` gives, without a byte per code: words change
    places as they are, then each eight of them swap nibbles in three steps, as a matrix of 8 x 8
    is transposed by halves. K is a multiple of 8.
    """
    rows, width = words.shape
    depth = rows // CODES_PER_WORD
    grid = words.view(depth, CODES_PER_WORD, width)
    if out is None:
        out = words.new_empty(width * CODES_PER_WORD, depth)
    columns = out.view(width, CODES_PER_WORD, depth)
    # On a CPU a block stays in the cache and its memory is used again; others take all at once.
    is_cpu = words.device.type == "cpu"
    block_width = min(TRANSPOSED_WIDTH, width) if is_cpu else width
    block_depth = min(TRANSPOSED_DEPTH, depth) if is_cpu else depth
    scratch = words.new_empty(CODES_PER_WORD * block_width * block_depth)
    for left in range(0, width, block_width):
        for top in range(0, depth, block_depth):
            part = grid[top : top + block_depth, :, left : left + block_width].permute(1, 2, 0)
            block = scratch[: part.numel()].view(part.shape)  # (8, w, d)
            for nibble, row in enumerate(to_order):
                block[nibble] = part[row]
            _swap_nibbles(block)
            target = columns[left : left + block_width, :, top : top + block_depth]
            for nibble, column in enumerate(order):
                target[:, column] = block[nibble]
    return out


def _swap_nibbles(words: Tensor) -> None:
    """(8, ...) int32, in place: nibble i of word j and nibble j of word i change places."""
    for distance, mask in ((4, 0x0000FFFF), (2, 0x00FF00FF), (1, 0x0F0F0F0F)):
        low, high = words.unflatten(0, (-1, 2, distance)).unbind(1)
        swapped = (low >> 4 * distance).bitwise_xor_(high).bitwise_and_(mask)
        high.bitwise_xor_(swapped)
        low.bitwise_xor_(swapped.bitwise_left_shift_(4 * distance))


def from_awq_gemm(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, out: Tensor | None = None
) -> Int4Weight:
    """AutoAWQ version GEMM: (K, N / 8) int32, (G, N / 8) int32, (G, N) float16.

    `out` (N, K / 8) int32 is memory for the words.
    """
    return Int4Weight(
        qweight=transpose_codes(qweight, AWQ_GEMM_ORDER, out=out),
        zeros=unpack(qzeros, AWQ_GEMM_ORDER).t().contiguous(),
        scales=scales.t().contiguous(),
    )


def to_awq_gemm(weight: Int4Weight) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `from_awq_gemm`; N is a multiple of 8."""
    return (
        transpose_codes(weight.qweight, to_order=AWQ_GEMM_ORDER),
        pack(weight.zeros.t(), AWQ_GEMM_ORDER),
        weight.scales.t().contiguous(),
    )


def from_awq_gemv(qweight: Tensor, qzeros: Tensor, scales: Tensor, num_groups: int) -> Int4Weight:
    """AutoAWQ version GEMV: (N, K / 8) int32, (N, Z) int32, (N, 8 Z) float16, Z = ceil(G / 8).

    Columns after the first G of zero points and scales only fill the last word.
    """
    return Int4Weight(
        qweight=qweight,
        zeros=unpack(qzeros)[:, :num_groups].contiguous(),
        scales=scales[:, :num_groups].contiguous(),
    )


def from_compressed(qweight: Tensor, scales: Tensor, qzeros: Tensor | None) -> Int4Weight:
    """compressed-tensors pack-quantized: (N, K / 8) int32, (N, G) float, (ceil(N / 8), G) int32.

    Signed codes -8..7 and zero points are stored plus 8, so that their difference is unchanged;
    zero points are packed along N. Without them the weight is symmetric: z = 0, stored as 8.
    """
    if qzeros is None:
        zeros = torch.full(scales.shape, SYMMETRIC_ZERO, dtype=torch.uint8, device=scales.device)
    else:
        zeros = unpack(qzeros.t()).t()[: scales.shape[0]].contiguous()
    return Int4Weight(qweight=qweight, zeros=zeros, scales=scales)


@dataclass(frozen=True, kw_only=True)
class RowsInt4:
    """The one layout of the fast paths, shared by decode and prefill; K is a multiple of 128.

    qweight: (N, K / 8) int32; nibble i of word w holds code k = 8 w + AWQ_GEMM_ORDER[i], so that
        `(word >> 4 j) & 0x000f000f` is the pair (k = 8 w + 2 j, 8 w + 2 j + 1)
    scale_zero: (N, K / 128, 2) float16: the scale, then the zero point 0..15 as a float
    """

    qweight: Tensor
    scale_zero: Tensor

    @property
    def num_outputs(self) -> int:
        """N."""
        return self.qweight.shape[0]

    @property
    def num_inputs(self) -> int:
        """K."""
        return self.qweight.shape[1] * CODES_PER_WORD


def to_rows(weight: Int4Weight) -> RowsInt4:
    """The weight for the fast paths, scales rounded to float16; ValueError for another group."""
    num_inputs = weight.qweight.shape[1] * CODES_PER_WORD
    group_size = num_inputs // weight.scales.shape[1]
    if group_size != ROWS_GROUP or num_inputs % ROWS_GROUP:
        raise ValueError(
            f"groups of {group_size} along {num_inputs} inputs; the fast int4 paths read groups of "
            f"{ROWS_GROUP}: quantize with group size {ROWS_GROUP}"
        )
    return RowsInt4(
        qweight=pack(unpack(weight.qweight), AWQ_GEMM_ORDER),
        scale_zero=torch.stack((weight.scales.half(), weight.zeros.half()), dim=-1).contiguous(),
    )


def from_rows(rows: RowsInt4) -> Int4Weight:
    """The inverse of `to_rows`, with float16 scales."""
    return Int4Weight(
        qweight=pack(unpack(rows.qweight, AWQ_GEMM_ORDER)),
        zeros=rows.scale_zero[..., 1].to(torch.uint8),
        scales=rows.scale_zero[..., 0].contiguous(),
    )


def concatenate_rows(parts: Sequence[RowsInt4]) -> RowsInt4:
    """Several linears of the same input as one, their outputs one after the other (q | k | v)."""
    return RowsInt4(
        qweight=torch.cat([part.qweight for part in parts]),
        scale_zero=torch.cat([part.scale_zero for part in parts]),
    )
