# SPDX-License-Identifier: Apache-2.0
"""Measurements. Each prints ratios from one run beside the hardware; none decides a test."""
