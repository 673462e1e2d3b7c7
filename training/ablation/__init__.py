# SPDX-License-Identifier: Apache-2.0
"""Ablations of the small model: arms that share one corpus, trained, scored and examined."""
