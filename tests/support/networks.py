"""Small networks with the essential patterns of those that people deploy, re-created without their packages."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody knows
from torch import Tensor, nn

CLASSES = 4


class ConvBNAct(nn.Sequential):
    def __init__(self, i: int, o: int, kernel: int, act: nn.Module | None, groups: int = 1) -> None:
        layers = [nn.Conv2d(i, o, kernel, padding=kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]
        super().__init__(*layers, *([] if act is None else [act]))


class Head(nn.Sequential):
    def __init__(self, features: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, CLASSES))


class BasicBlock(nn.Module):
    """torchvision's: one ReLU module for both activations, in place, and an addition in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class SqueezeExcitation(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.avgpool, self.fc1, self.fc2 = nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)
        self.activation, self.scale_activation = nn.ReLU(inplace=True), nn.Hardsigmoid(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x))))) * x


class InvertedResidual(nn.Module):
    def __init__(self, width: int, wide: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.block = nn.Sequential(ConvBNAct(width, wide, 1, act(inplace=True)),
                                   ConvBNAct(wide, wide, 3, act(inplace=True), wide),
                                   SqueezeExcitation(wide), ConvBNAct(wide, width, 1, None))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        result = self.block(x)
        result += x
        return result


class ChannelsNorm(nn.LayerNorm):
    """ConvNeXt's LayerNorm2d."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width), ChannelsNorm(width),
                                   nn.Conv2d(width, 16, 1), nn.GELU(), nn.Conv2d(16, width, 1))  # fmt: skip
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        result = self.layer_scale * self.block(x)
        result += x
        return result


class SharedBlock(nn.Module):
    def __init__(self, i: int, o: int, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


def shared_activation() -> nn.Module:
    """Return Ultralytics' pattern: all blocks hold the same activation module."""
    act = nn.ReLU()
    return nn.Sequential(SharedBlock(3, 8, act), SharedBlock(8, 8, act), SharedBlock(8, 8, act), Head(8))


class IgnoredResults(nn.Module):
    """In-place calls whose result nobody takes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.last = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
        self.act, self.head = nn.ReLU(inplace=True), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        self.act(x)
        y = self.conv(x)
        y.add_(x)
        F.relu(y, inplace=True)
        z = self.last(y)
        z.relu_()
        return self.head(z)


class GoogLeNetOutputs(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


class AuxiliaryHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = (ConvBNAct(i, 8, 3, nn.ReLU(inplace=True)) for i in (3, 8))
        self.aux, self.head = Head(8), Head(8)

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        x = self.stem(x)
        logits = self.head(self.conv(x))
        return GoogLeNetOutputs(logits, self.aux(x)) if self.training else logits


class Conv1D(nn.Module):
    """transformers' linear layer with a transposed weight."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.shape[:-1], self.weight.shape[1])
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


class GPT2(nn.Module):
    def __init__(self, width: int = 16, heads: int = 2, tokens: int = 11, length: int = 6) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.ln_1, self.ln_2, self.ln_f = (nn.LayerNorm(width) for _ in range(3))
        self.c_attn, self.c_proj = Conv1D(3 * width, width), Conv1D(width, width)
        self.c_fc, self.mlp_proj = Conv1D(2 * width, width), Conv1D(width, 2 * width)
        self.head = nn.Linear(width, CLASSES)
        self.heads = heads

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length = tokens.shape
        x = self.wte(tokens) + self.wpe(torch.arange(length, device=tokens.device))
        # (B, T, 3·C) → 3 × (B, heads, T, C / heads)
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2)
                   for part in self.c_attn(self.ln_1(x)).split(x.shape[-1], -1))  # fmt: skip
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(attended.transpose(1, 2).reshape(x.shape))
        x = x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))
        return self.head(self.ln_f(x)[:, -1])


class Swin(nn.Module):
    """Attention within windows that are folded into the batch, with a table of relative positions."""

    def __init__(self, width: int = 8, window: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 2, stride=2)
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.02)
        places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        relative = (places[:, :, None] - places[:, None, :]) + window - 1
        self.register_buffer("index", relative[0] * (2 * window - 1) + relative[1], persistent=False)
        self.head, self.window, self.heads = nn.Linear(width, CLASSES), window, heads

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        w, (batch, height, width, channels) = self.window, x.shape
        # (B, H, W, C) → (B·windows, w·w, C)
        windows = x.view(batch, height // w, w, width // w, w, channels).permute(0, 1, 3, 2, 4, 5)
        windows = windows.reshape(-1, w * w, channels)
        qkv = self.qkv(self.norm(windows)).view(windows.shape[0], w * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)
        scores = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias, -1)
        windows = windows + self.proj((scores @ v).transpose(1, 2).reshape(windows.shape))
        return self.head(windows.reshape(batch, -1, channels).mean(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 16, 4, stride=4), nn.LayerNorm(16)
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.norm(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(24, 16, batch_first=True), nn.GRU(16, 8, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.lstm(x.permute(0, 2, 1, 3).flatten(2))[0])[0][:, -1])


class Normed(nn.Module):
    """Norms with factors of several axes, and a layer that nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.LayerNorm([8, 8, 8])
        self.again, self.group = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.head, self.unused = Head(8), nn.Linear(7, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.group(self.again(torch.relu(self.norm(self.conv(x)))))))


class TwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), Head(8)
        self.encoder = self.conv
        self.last = self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.encoder(torch.relu(self.conv(torch.relu(self.stem(x)))))))


class Reparametrized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.new = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
        with torch.no_grad():
            self.new.parametrizations.weight.original0.mul_(2)
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3))
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.spectral(torch.relu(self.new(x)))))


class OldStyle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.old, self.spectral = nn.Conv2d(3, 8, 3), nn.utils.spectral_norm(nn.Conv2d(8, 8, 3))
        nn.utils.weight_norm(self.old)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.spectral(torch.relu(self.old(x)))))


class OwnNames(nn.Module):
    """Weights of the user's own, standardized ones among them, and outputs pooled at the very end."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.gain = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.2), nn.Parameter(torch.ones(8, 1, 1, 1))
        self.W = nn.Parameter(torch.randn(8, 8) * 0.3)
        self.last = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = self.kernel.mean((1, 2, 3), keepdim=True), self.kernel.std((1, 2, 3), keepdim=True)
        x = torch.relu(F.conv2d(x, self.gain * (self.kernel - mean) / (deviation + 1e-3) * 0.2, padding=1))
        x = torch.relu(x.permute(0, 2, 3, 1) @ self.W).permute(0, 3, 1, 2)
        return self.last(x).mean((2, 3))


class Anchors(nn.Module):
    """A detector's head: anchors that it computes for the shape of its last input, and keeps; a sum with a projection.

    In training it asks its input for a gradient, as transformers with gradient checkpointing do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = ConvBNAct(3, 8, 3, nn.ReLU()), nn.Conv2d(8, 4, 1)
        self.skip, self.out = nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.shape: torch.Size | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x.requires_grad = True
        h = self.head(self.stem(x))
        if self.shape != h.shape:
            grid = torch.arange(h.shape[-1]).type_as(h) + 0.5
            self.anchors = torch.stack([grid, h.new_full((h.shape[-1],), 0.25)])
            self.shape = h.shape
        pooled = h.mean((2, 3)) * self.anchors.mean()
        return self.out(pooled + self.skip(pooled))


NETWORKS = {
    "resnet": lambda: nn.Sequential(ConvBNAct(3, 8, 3, nn.ReLU(inplace=True)), BasicBlock(8), Head(8)),
    "mobilenet v3": lambda: nn.Sequential(ConvBNAct(3, 8, 3, nn.Hardswish(inplace=True)),
                                          InvertedResidual(8, 16, nn.Hardswish), Head(8)),
    "efficientnet": lambda: nn.Sequential(ConvBNAct(3, 8, 3, nn.SiLU(inplace=True)),
                                          InvertedResidual(8, 16, nn.SiLU), Head(8)),
    "convnext": lambda: nn.Sequential(nn.Conv2d(3, 8, 2, stride=2), ChannelsNorm(8), ConvNeXtBlock(8), Head(8)),
    "shared activation": shared_activation,
    "ignored results": IgnoredResults,
    "auxiliary head": AuxiliaryHead,
    "gpt-2": GPT2,
    "swin": Swin,
    "attention": Attention,
    "recurrent": Recurrent,
    "norms of several axes": Normed,
    "two names": TwoNames,
    "reparametrized": Reparametrized,
    "reparametrized, old style": OldStyle,
    "anchors": Anchors,
    "own names": OwnNames,
}  # fmt: skip


def samples(name: str, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return inputs and labels of a network: images [N, 3, 8, 8], or tokens [N, 6]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    if name == "gpt-2":
        return torch.randint(0, 11, (count, 6), generator=generator), labels
    images = torch.randn(count, 3, 8, 8, generator=generator) * 0.5
    return images + labels.view(-1, 1, 1, 1) * 0.3, labels
