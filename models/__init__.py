# SPDX-License-Identifier: Apache-2.0
"""The network: pixels and text in, text out.

Letters of shapes: F frames, S image side, P patches, T tokens, D width, L sequence, B batch,
V vocabulary.
"""
