"""Features of a folder of pictures by a frozen network of timm, open_clip or DINOv2, as docs/features.md uses them.

    python docs/make_features.py --images=photos/train --output=train.npz --model=timm:resnet50.a1_in1k

Needs torch and the package that the model comes from. The folder holds CLASS/*.jpg (or other pictures).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def load_timm(name: str) -> tuple[Any, Callable[[Any], Any]]:
    """A network of timm without its classifier, and its evaluation transform."""
    import timm

    model = timm.create_model(name, pretrained=True, num_classes=0)
    return model, timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)


def load_clip(name: str) -> tuple[Any, Callable[[Any], Any]]:
    """The image tower of a network of open_clip, NAME:WEIGHTS, and its transform."""
    import open_clip

    architecture, _, weights = name.partition(":")
    model, _, transform = open_clip.create_model_and_transforms(architecture, pretrained=weights)
    model.forward = model.encode_image
    return model, transform


def load_dinov2(name: str) -> tuple[Any, Callable[[Any], Any]]:
    """A network of DINOv2 by torch.hub, and the transform of its paper's evaluation."""
    import torch
    from torchvision import transforms

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [transforms.Resize(256, bicubic), transforms.CenterCrop(224), transforms.ToTensor()]
    model = torch.hub.load("facebookresearch/dinov2", name)
    return model, transforms.Compose([*steps, transforms.Normalize(mean, std)])


LOADERS = {"timm": load_timm, "clip": load_clip, "dinov2": load_dinov2}


def features_of(model: Any, transform: Callable[[Any], Any], files: list[Path], batch: int) -> np.ndarray:
    """float32 [N,D]: what the network gives for each file."""
    import torch
    from PIL import Image

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, found = model.eval().to(device), []
    for start in range(0, len(files), batch):
        images = [transform(Image.open(path).convert("RGB")) for path in files[start : start + batch]]
        with torch.inference_mode():
            found.append(model(torch.stack(images).to(device)).float().flatten(1).cpu().numpy())
        print(f"{min(start + batch, len(files)):,} of {len(files):,}", end="\r", flush=True)
    return np.concatenate(found)


def main() -> None:
    """Reads the folder and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder CLASS/*.jpg")
    parser.add_argument("--output", type=Path, required=True, help=".npz to write")
    parser.add_argument("--model", required=True, help=f"KIND:NAME, the kind one of {', '.join(LOADERS)}")
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    kind, _, name = args.model.partition(":")
    classes = sorted(folder.name for folder in args.images.iterdir() if folder.is_dir())
    files = [(path, c) for c, folder in enumerate(classes) for path in sorted((args.images / folder).rglob("*"))]
    files = [(path, c) for path, c in files if path.suffix.lower() in SUFFIXES]
    features = features_of(*LOADERS[kind](name), [path for path, _ in files], args.batch)
    labels = np.array([c for _, c in files], np.int64)
    np.savez(args.output, features=features, labels=labels, class_names=np.array(classes))
    print(f"{args.output}: {features.shape[0]:,} features of {features.shape[1]} numbers, {len(classes)} classes")


if __name__ == "__main__":
    main()
