# SPDX-License-Identifier: Apache-2.0
"""Datasets for training and evaluation, one file each behind `open_dataset`."""

from .registry import KINDS, open_dataset

__all__ = ["KINDS", "open_dataset"]
