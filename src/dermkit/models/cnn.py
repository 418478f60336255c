"""Two small convolutional nets that are trained from scratch: where no pretrained weights are at hand, and for tests.

Shapes: N images, C channels, H x W pixels.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

MEAN = STD = (0.5, 0.5, 0.5)
"""Mean and standard deviation that map pixels in 0..1 to -1..1; no pretrained weights ask for others."""


class GridMean(nn.Module):
    """Mean over each cell of a `cells` x `cells` grid: (N, C, H, W) -> (N, C * cells * cells), for any H and W.

    Where `cells` divides H and W this is plain average pooling, whose backward pass is deterministic on every device;
    that of adaptive pooling is not on CUDA.
    """

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % self.cells == 0 and width % self.cells == 0:
            return F.avg_pool2d(x, (height // self.cells, width // self.cells)).flatten(1)
        return F.adaptive_avg_pool2d(x, self.cells).flatten(1)


class SmallCNN(nn.Module):
    """Blocks of convolution and pooling, then a grid mean; each block is a layer group that can be frozen."""

    def __init__(self, blocks: list[nn.Module], cells: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.pool = GridMean(cells)
        for module in self.modules():
            # He and others 2015: keeps the variance through ReLU layers, where torch's default shrinks it.
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.pool(x)
        return features

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the layer groups in timm's form, a regular expression of parameter names: one group per block."""
        del coarse  # an argument of timm's interface
        return {"blocks": r"^blocks\.(\d+)"}


def _conv_block(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))


def _batch_norm_block(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.1),
    )


def _stack(block: Callable[[int, int], nn.Module], widths: tuple[int, ...], cells: int) -> SmallCNN:
    channel_pairs = zip((3, *widths), widths, strict=False)
    return SmallCNN([block(in_channels, out_channels) for in_channels, out_channels in channel_pairs], cells)


def cnn_s1() -> SmallCNN:
    """Three blocks of 3x3 convolution (32, 64, 128), ReLU and 2x2 max-pooling; 4x4 grid: 2,048 features."""
    return _stack(_conv_block, (32, 64, 128), cells=4)


def cnn_s4() -> SmallCNN:
    """Four blocks (32, 64, 128, 256) with batch norm and 10 % dropout each; mean over the image: 256 features."""
    return _stack(_batch_norm_block, (32, 64, 128, 256), cells=1)


CNN_BUILDERS: dict[str, Callable[[], SmallCNN]] = {"dermkit/cnn-s1": cnn_s1, "dermkit/cnn-s4": cnn_s4}
"""The backbones that a recipe may name besides timm's."""
