# SPDX-License-Identifier: Apache-2.0
"""Quantizers: AWQ for the decoder, SmoothQuant for the tower, layer by layer from disk to disk."""
