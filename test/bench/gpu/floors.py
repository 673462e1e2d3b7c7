# SPDX-License-Identifier: Apache-2.0
"""The least that a figure can be on an H100, from bytes and operations; and what was aimed at.

Sources: reference/engine.md section 5 (bytes with an int8 head, 3.35 TB/s; dense operations at
989 TFLOP/s fp16 and 1,979 TOP/s int8). The floors are of the vendor's numbers: what this card was
measured to copy (3.01 TB/s) and multiply (794 TFLOP/s, 944 TOP/s) is a tenth to a half less.
"""

FLOORS: dict[tuple[str, str], float] = {
    ("lite8b", "decode_tokens_per_s"): 839.0,
    ("8b", "decode_tokens_per_s"): 839.0,
    ("lite2b", "decode_tokens_per_s"): 3551.0,
    ("lite8b", "prefill_1088_ms"): 14.4,
    ("lite2b", "prefill_1088_ms"): 2.96,
    ("lite8b", "vision_tower_8_ms"): 8 * 0.56,
    ("lite8b", "vision_tower_1_ms"): 0.56,
    ("lite8b", "vision_8_ms"): 8 * 0.56,
    ("lite8b", "vision_1_ms"): 0.56,
}
TARGETS: dict[tuple[str, str], str] = {
    ("lite8b", "decode_tokens_per_s"): ">= 500",
    ("lite2b", "decode_tokens_per_s"): ">= 1400",
    ("lite8b", "prefill_1088_ms"): "<= 26",
    ("lite8b", "vision_tower_8_ms"): "<= 10",
    ("lite8b", "vision_tower_1_ms"): "<= 2",
    ("lite8b", "vision_8_ms"): "<= 10",
    ("lite8b", "vision_1_ms"): "<= 2",
    ("lite8b", "decision_p50_ms"): "<= 40",
    ("lite8b", "in_use_by_driver_bytes"): "<= 7.5e9",
}
