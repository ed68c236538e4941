"""ImageNet-LT (paper, tables 2 and 5): 115,846 training images of 1,000 classes, 1,280 to 5 each; 50,000 test images.

    python -m shike_jax train --config=imagenet_lt:root=/data/imagenet,lists=/data/lists --workdir=runs/inlt
    python -m shike_jax train --config=imagenet_lt:source=tfds,backbone=resnext50_32x4d --workdir=runs/inlt_rx

Arguments: `paper` or `official` (form of the losses); source=lists (root= holds train/ and val/ of ILSVRC 2012, lists=
the folder of ImageNet_LT_{train,val,test}.txt, root itself when empty) or source=tfds (`imagenet_lt` stored as
array_record); backbone=resnet50|resnext50_32x4d|resnet152, epochs=180 (380: the 400-epoch row), classifier_epochs=20,
lr=0.2 (peak, sec. 4.2; the paper names no batch size, here 256).
Needs (counted, not measured): 21.4 GFLOP forward an image with ResNet-50, 22.3 with ResNeXt-50; 1.4e18 FLOP of training
for 180 + 20 epochs with ResNet-50 (3.9 hours at 100 TFLOP/s); a batch of 256 on one GPU 14.1 GB, 17.9 with ResNeXt-50,
of 32 2.9 GB (docs/speed.md). The paper: 59.7 (R-50), 60.3 (400 epochs), 59.6 (RX-50). Here: not yet measured.
"""

from shike_jax import config as schema


def get_config(arguments: str | None = None):
    """Three experts on ResNet-50, batches of 256, 224 px."""
    args = schema.parse_arguments(
        arguments,
        ("paper", "official"),
        source="lists",
        root="",
        lists="",
        backbone="resnet50",
        epochs=180,
        classifier_epochs=20,
        lr=0.2,
    )
    config = schema.base()
    config.name = "imagenet_lt"
    schema.photograph_recipe(
        config, args["preset"], args["backbone"], (args["epochs"], args["classifier_epochs"]), args["lr"]
    )
    folder = args["lists"] or args["root"]
    config.data.update({"source": args["source"], "name": "imagenet_lt", "root": args["root"]})
    if args["source"] == "lists" and folder:
        for part in ("train", "val", "test"):
            config.data[f"{part}_list"] = f"{folder}/ImageNet_LT_{part}.txt"
    config.train.eval_every_epochs = 5
    return config
