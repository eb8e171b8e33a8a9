"""A convolutional autoencoder for 8×8 digits: a regression whose targets are images."""

from __future__ import annotations

from torch import Tensor, nn


class Autoencoder(nn.Module):
    """[N, 1, 8, 8] → the image again [N, 1, 8, 8], through `code` numbers."""

    def __init__(self, width: int, code: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False),  # 8×8 → 4×4
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),  # 4×4 → 2×2
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * width, code),
        )
        self.decoder = nn.Sequential(
            nn.Linear(code, 8 * width),
            nn.ReLU(),
            nn.Unflatten(1, (2 * width, 2, 2)),
            nn.ConvTranspose2d(2 * width, width, 2, stride=2),  # 2×2 → 4×4
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 2, stride=2),  # 4×4 → 8×8
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction."""
        image: Tensor = self.decoder(self.encoder(x))
        return image


def digits_autoencoder(width: int = 16, code: int = 16) -> nn.Module:
    """Build the network; `code` is how many numbers represent an image."""
    return Autoencoder(width, code)
