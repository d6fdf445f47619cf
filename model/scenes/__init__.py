# SPDX-License-Identifier: Apache-2.0
"""Procedural scenes with known cameras."""
