# SPDX-License-Identifier: Apache-2.0
"""Makes the weights: data, stages, losses and the loop that trains."""
