"""Photographs of three textures that come with scikit-image, in small pieces, to be told apart."""

from __future__ import annotations

import pytest
import torch

NAMES = ("brick", "grass", "gravel")


def textures(side=16, each=16):
    """Return pieces of the photographs, float32 [3 * each, 1, side, side], and which one each is from."""
    data = pytest.importorskip("skimage.data", reason="the photographs come with scikit-image")
    pieces, labels = [], []
    for label, name in enumerate(NAMES):
        whole = torch.from_numpy(getattr(data, name)()).to(torch.float32) / 255 - 0.5
        tiles = whole.unfold(0, side, side).unfold(1, side, side).reshape(-1, side, side)
        pieces.append(tiles[:: len(tiles) // each][:each, None])
        labels += [label] * each
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.cat(pieces)[order].contiguous(), torch.tensor(labels)[order]
