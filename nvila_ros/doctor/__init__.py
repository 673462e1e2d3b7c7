# SPDX-License-Identifier: Apache-2.0
"""First-run care: is everything there that a drive needs, and what to do where it is not."""
