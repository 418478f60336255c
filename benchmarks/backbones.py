"""The rows of `KNOWN_BACKBONES`: parameters and multiply-adds of nets, counted on shapes alone.

    python benchmarks/backbones.py [NAME...]

Parameters are those of the backbone without a classifier. Multiply-adds are half the operations that torch's counter
finds in convolutions and matrix products, for one image of the size that the pretrained weights were trained with.
Nothing is downloaded and no weights are loaded.
"""

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode

from dermkit.models.backbones import KNOWN_BACKBONES, Backbone
from dermkit.models.cnn import CNN_BUILDERS
from dermkit.models.weights import import_timm


def count_backbone(name: str) -> Backbone:
    """Return a row of the table, computed from the net that timm builds."""
    with torch.device("meta"):
        if name in CNN_BUILDERS:
            net, size, hub_id, licence = CNN_BUILDERS[name](), 64, "", ""
        else:
            net = import_timm().create_model(name, pretrained=False, num_classes=0)
            config = net.pretrained_cfg
            size, hub_id, licence = config["input_size"][-1], config["hf_hub_id"] or "", config["license"] or ""
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            net.eval()(torch.empty(1, 3, size, size))
    n_parameters = sum(parameter.numel() for parameter in net.parameters())
    return Backbone(
        name, size, round(n_parameters / 1e6, 2), round(counter.get_total_flops() / 2e9, 2), hub_id, licence
    )


def main() -> None:
    """Print one row a name, as the table has it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[backbone.name for backbone in KNOWN_BACKBONES])
    for name in parser.parse_args().names:
        row = count_backbone(name)
        print(
            f'    Backbone("{row.name}", {row.image_size}, {row.million_parameters:g}, '
            f'{row.giga_multiply_adds:g}, "{row.hub_id}", "{row.licence}"),',
            flush=True,
        )


if __name__ == "__main__":
    main()
