"""Networks of the shapes of ResNet-50 and MobileNet, with random weights: speed does not ask what a network has learned."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from openwork.tasks.initial import seeded


class Bottleneck(nn.Module):
    """K. He et al., 2016, section 4.1, with the stride at the 3 x 3 convolution, as is common since."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        return self.relu(y + self.shortcut(x))


def resnet50(classes: int = 1000) -> nn.Module:
    """25.5 million weights, 4.1 billion multiply-adds for an image of 224 x 224."""

    def blocks() -> Iterator[nn.Module]:
        inputs = 64
        for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for i in range(count):
                yield Bottleneck(inputs, width, stride if i == 0 else 1)
                inputs = 4 * width

    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, classes)]
    return steady(seeded(lambda: nn.Sequential(*stem, *blocks(), *head), 0))


def mobilenet(classes: int = 1000) -> nn.Module:
    """A. Howard et al., MobileNets, 2017: 4.2 million weights, most of them in 1 x 1 convolutions."""

    def separable(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        thin = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        mix = nn.Conv2d(inputs, outputs, 1, bias=False)
        return [thin, nn.BatchNorm2d(inputs), nn.ReLU(), mix, nn.BatchNorm2d(outputs), nn.ReLU()]

    def build() -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        widths = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
        strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
        for inputs, outputs, stride in zip(widths, widths[1:], strides, strict=False):
            layers += separable(inputs, outputs, stride)
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, classes))

    return steady(seeded(build, 0))


@torch.no_grad()
def steady(model: nn.Module) -> nn.Module:
    """With norms that keep activations of random weights in range: statistics of one batch of noise."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    return model.eval()
