# SPDX-License-Identifier: Apache-2.0
"""The network: pixels and text in, text out. F frames, S image side, P patches, T tokens, D width."""
