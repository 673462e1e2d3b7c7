# SPDX-License-Identifier: Apache-2.0
"""How well a policy drives: metrics, rollouts and reports."""
