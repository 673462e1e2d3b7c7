# SPDX-License-Identifier: Apache-2.0
"""Training data: rows of many formats become samples, samples token ids, those packed batches."""
