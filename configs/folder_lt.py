"""Your own photographs: a folder of class folders, or a table of paths and labels; long-tailed by nature or request.

    python -m shike_jax train --config=configs/folder_lt.py:root=DIR --workdir=runs/mine

root=DIR holds CLASS/*.jpg, of which test_share=0.2 of each class are held out for testing, or {train,test}/CLASS/*.jpg;
table=FILE names a CSV or JSON Lines file with path, label and perhaps part. validation=0.1 (or 5: images of each class)
holds out training images, to be looked at instead of the test images while choices are made.

weights=resnet50.pth starts from a file of torchvision's or timm's as it is (`.pth`, `.bin`, `.safetensors`). backbone=
says which network it holds (resnet18, resnet34, resnet50, resnext50_32x4d, resnet152); without it the file's name does,
and a name that says nothing means resnet50. Then: 224 px, 30 + 10 epochs, batch 64, lr
0.01. frozen=true (default) leaves the shared stages as they come and trains the experts; frozen=false trains all.

The number of images (or of lines of the table) chooses size, network, epochs, batch and augmentation (`_SCALES` below);
arguments override each: `official` or `paper`; root=DIR, imbalance_factor=0 (0: the folder's own counts), size=0
(pixels), backbone=, width=0, epochs=0, classifier_epochs=0, batch=0, lr=0 (0 or empty: by the number of images). On a
CPU take a size from 80 on: the last maps of these networks are size / 32 pixels wide, and 3x3 convolutions on 2x2 maps
are slow.
Result: caltech101_lt (3,876 training photographs, IF 100), root=photos,epochs=20,classifier_epochs=8, three seeds:
40.70 +- 0.50 % top-1, few-shot 12.53 before and 26.73 after stage two, 10 to 20 minutes each on two busy CPU cores
(docs/results/caltech101_lt); all epochs: not yet measured.
"""

import os

from shike_jax import config as schema

# Up to so many images, those held out included: what is trained, and for how long. Few images: a slim network that two
# CPU cores train in less than half an hour; of those tried on 3,100 photographs (validation images taken from the
# training ones) it learnt most per minute of processor time.
_SCALES = (
    (
        20_000,
        {
            "backbone": "resnet18",
            "size": 96,
            "width": 32,
            "blocks": (1, 1, 1, 1),
            "epochs": 50,
            "classifier_epochs": 15,
            "batch": 64,
            "lr": 0.1,
            "policy": "none",
            "scale": (0.25, 1.0),
            "dtype": "float32",
        },
    ),
    (
        float("inf"),
        {
            "backbone": "resnet50",
            "size": 224,
            "width": 0,
            "blocks": (),
            "epochs": 180,
            "classifier_epochs": 20,
            "batch": 256,
            "lr": 0.2,
            "policy": "randaugment",
            "scale": (0.08, 1.0),
            "dtype": "bfloat16",
        },
    ),
)


# With pre-trained weights: fewer epochs at a tenth of the learning rate, and the size that the weights were made for.
_FINE_TUNING = {"size": 224, "width": 0, "blocks": (), "epochs": 30, "classifier_epochs": 10, "batch": 64, "lr": 0.01}
_PRETRAINED = ("resnext50_32x4d", "resnet152", "resnet50", "resnet34", "resnet18")


def get_config(arguments: str | None = None):
    """Three experts on a slim ResNet-18 for small folders, on a ResNet-50 for large ones."""
    args = schema.parse_arguments(
        arguments,
        ("official", "paper"),
        root="",
        table="",
        validation=0.0,
        test_share=0.2,
        weights="",
        frozen=True,
        imbalance_factor=0.0,
        size=0,
        backbone="",
        width=0,
        epochs=0,
        classifier_epochs=0,
        batch=0,
        lr=0.0,
    )
    images = schema.count_images(os.path.join(args["root"], "train")) or schema.count_images(args["root"])
    if args["table"]:
        images = schema.count_lines(args["table"])
    chosen = dict(next(values for most, values in _SCALES if images <= most))
    if args["weights"]:
        name = os.path.basename(args["weights"])
        chosen |= {**_FINE_TUNING, "backbone": next((known for known in _PRETRAINED if known in name), "resnet50")}
    if args["backbone"] not in ("", chosen["backbone"]):
        chosen |= {"blocks": (), "width": 0}  # another network comes in its own shape
    chosen |= {name: args[name] for name in chosen if args.get(name)}

    config = schema.base()
    config.name = "folder_lt"
    schema.photograph_recipe(
        config, args["preset"], chosen["backbone"], (chosen["epochs"], chosen["classifier_epochs"]), chosen["lr"]
    )
    config.dtype = chosen["dtype"]
    config.data.update({"source": "table" if args["table"] else "folder", "image_size": chosen["size"], "resize": 0})
    config.data.update({name: args[name] for name in ("root", "table", "validation", "test_share")})
    if args["imbalance_factor"]:
        config.data.update({"profile": "exponential", "imbalance_factor": args["imbalance_factor"]})
    config.augment.update({"policy": chosen["policy"], "scale": chosen["scale"]})
    config.model.update({"width": chosen["width"], "blocks": chosen["blocks"]})
    if chosen["backbone"] in ("resnet20", "resnet32", "resnet44", "resnet56"):
        config.model.depths = (1, 2, 1)  # networks of three stages
    if args["weights"]:
        schema.fine_tuning(config, args["weights"], args["frozen"])
    for name in config.run:
        config.stages[name].batch_size = chosen["batch"]
    return config
