# SPDX-License-Identifier: Apache-2.0
"""Datasets for training, one file each."""
