"""A small vision transformer for 8×8 digits (Dosovitskiy et al., 2021), written from plain linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values have a linear layer each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.heads = heads

    def split(self, x: Tensor) -> Tensor:
        """[N, tokens, width] → [N, heads, tokens, width / heads]."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, width] → the same shape."""
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        weights = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1)  # (N, heads, tokens, tokens)
        mixed = (weights @ v).transpose(1, 2).flatten(2)  # (N, tokens, width)
        out: Tensor = self.out(mixed)
        return out


class Block(nn.Module):
    """Attention and a two-layer network, each with LayerNorm before and a shortcut around it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, width] → the same shape."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """[N, 1, 8, 8] → class scores [N, classes]: sixteen patches of 2×2 as tokens, their mean is classified."""

    def __init__(self, width: int, heads: int, depth: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position  # (N, 16, width)
        scores: Tensor = self.classifier(self.norm(self.blocks(tokens)).mean(1))
        return scores


def digits_vit(width: int = 48, heads: int = 4, depth: int = 3, classes: int = 10) -> nn.Module:
    """Build the transformer; 56 thousand weights."""
    return VisionTransformer(width, heads, depth, classes)
