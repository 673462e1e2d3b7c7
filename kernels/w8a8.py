# SPDX-License-Identifier: Apache-2.0
"""A linear layer in eight bits: int8 weights per output, int8 activations per token."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from nvila_ros.errors import KernelError
from nvila_ros.kernels import build, cpu_int8, reference, vision_rows, w8a8_hopper
from nvila_ros.kernels.w8a8_hopper import Epilogue

PLAIN = Epilogue()
SIGLIP_WIDTH, SIGLIP_INNER = 1152, 4304


class W8A8Linear(nn.Module):
    """`nn.Linear` with int8 codes and one scale per output; activations are quantized as they come.

    Buffers: weight (N, K) int8, weight_scale (N,) float32; `bias` (N,) or None. For inference:
    there is no gradient.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        codes = torch.zeros(out_features, in_features, dtype=torch.int8)
        self.register_buffer("weight", codes)
        self.register_buffer("weight_scale", torch.zeros(out_features, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> W8A8Linear:
        """Rounds a linear's weight to 127 steps per output; the bias is kept as it is."""
        quantized = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        with torch.no_grad():
            quantized.weight, quantized.weight_scale = reference.quantize_per_token(linear.weight)
            if linear.bias is not None:
                quantized.bias = nn.Parameter(linear.bias.detach().clone())
        return quantized

    def dequantized(self) -> Tensor:
        """The dense weight (N, K) float32."""
        return self.weight.float() * self.weight_scale[:, None]

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., K) float -> (..., N) in the same dtype."""
        rows = inputs.flatten(0, -2)
        codes, scales = quantize_per_token(rows)
        outputs = w8a8_matmul(
            codes, scales, self.weight, self.weight_scale, self.bias, dtype=inputs.dtype
        )
        return outputs.view(*inputs.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class BoundLinear:
    """One int8 product on a GPU with its buffers bound: the fastest kernel that this GPU has.

    codes (M, K) int8, weight (N, K) int8, weight_scale (N,) float32, bias (N,) float16.
    """

    def __init__(
        self,
        codes: Tensor,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor,
        epilogue: Epilogue = PLAIN,
    ) -> None:
        self._operands = (codes, weight, weight_scale, bias)
        self._gelu = epilogue.gelu
        self._hopper = None
        if is_hopper(codes.device) and weight.shape[1] % 16 == 0 and weight.shape[0] % 8 == 0:
            tiling = w8a8_hopper.choose_tiling(codes.shape[0], codes.shape[1], epilogue)
            self._hopper = w8a8_hopper.HopperGemm(codes, weight, tiling, epilogue)
        elif epilogue.codes_out or epilogue.block_scales or epilogue.head_tokens:
            raise KernelError("scales per block of columns, and heads apart, need a Hopper GPU")

    def launch(
        self,
        scales: Tensor,
        out: Tensor,
        residual: Tensor | None = None,
        out_scales: Tensor | None = None,
        *,
        programmatic: bool = False,
    ) -> Tensor:
        """Scales (M,) float32 [, residual (M, N) float16] -> `out` (M, N) float16.

        Scales per block of 192 columns are (blocks, M): those of the inputs, and `out_scales`.
        """
        codes, weight, weight_scale, bias = self._operands
        if self._hopper is not None:
            return self._hopper.launch(
                scales, weight_scale, bias, out, residual, out_scales, programmatic=programmatic
            )
        from nvila_ros.kernels import vision_triton

        return vision_triton.int8_gemm(
            codes, scales, weight, weight_scale, bias, residual, out, gelu=self._gelu
        )


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Whether wgmma and the bulk copy engine are there."""
    return torch.cuda.get_device_capability(device) == (9, 0)


def quantize_per_token(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(..., K) float -> codes (..., K) int8, scales (...) float32; see the twin."""
    if inputs.device.type == "cpu":
        return cpu_int8.quantize_per_token(inputs)
    if not (_is_fast(inputs) and vision_rows.is_supported(inputs.shape[-1])):
        return reference.quantize_per_token(inputs)
    rows = inputs.reshape(-1, inputs.shape[-1])
    codes = torch.empty_like(rows, dtype=torch.int8)
    scales = torch.empty(rows.shape[0], dtype=torch.float32, device=rows.device)
    vision_rows.quantize(rows, codes, scales)
    return codes.view(inputs.shape), scales.view(inputs.shape[:-1])


def w8a8_matmul(
    codes: Tensor,
    scales: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype = torch.float16,
) -> Tensor:
    """See the twin: (M, K), (M,), (N, K), (N,) [, (N,), (M, N)] -> (M, N) in `dtype`."""
    if dtype == torch.float16 and codes.shape[0] > 0 and build.is_fast(codes):
        shift = weight_scale.new_zeros(weight.shape[0]) if bias is None else bias.detach()
        added = None if residual is None else residual.half().contiguous()
        out = codes.new_empty(codes.shape[0], weight.shape[0], dtype=torch.float16)
        epilogue = Epilogue(residual=added is not None)
        bound = BoundLinear(codes.contiguous(), weight, weight_scale, shift.half(), epilogue)
        return bound.launch(scales.contiguous(), out, added)
    if codes.device.type == "cpu":
        return cpu_int8.w8a8_matmul(codes, scales, weight, weight_scale, bias, residual, dtype)
    return reference.w8a8_matmul(codes, scales, weight, weight_scale, bias, residual, dtype)


def ahead_of_time() -> Iterator[tuple[str, Mapping[str, object]]]:
    """What `build` compiles ahead for every architecture: the rows of SigLIP."""
    for width in (SIGLIP_WIDTH, SIGLIP_INNER):
        for is_few in (False, True):
            yield vision_rows.SOURCE, vision_rows.defines(width, is_few)


def ahead_of_time_hopper() -> Iterator[tuple[str, Mapping[str, object]]]:
    """The same for sm_90a alone: SigLIP's products for frames of 448 pixels."""
    for rows in (1024, 2048, 8192):
        codes = Epilogue(gelu=True, codes_out=rows > w8a8_hopper.FEW_ROWS)
        blocks = Epilogue(residual=True, block_scales=codes.codes_out, from_end=codes.codes_out)
        for epilogue in (
            Epilogue(head_tokens=1024, from_end=True),
            Epilogue(residual=True),
            codes,
            blocks,
        ):
            inputs = SIGLIP_INNER if epilogue is blocks else SIGLIP_WIDTH
            tiling = w8a8_hopper.choose_tiling(rows, inputs, epilogue)
            yield w8a8_hopper.SOURCE, tiling.defines(epilogue)


def _is_fast(inputs: Tensor) -> bool:
    return inputs.dtype == torch.float16 and inputs.numel() > 0 and build.is_fast(inputs)
