# SPDX-License-Identifier: Apache-2.0
"""Arithmetic: tensors in, tensors out; knows no model."""
