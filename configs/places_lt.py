"""Places-LT (paper, table 3): 62,500 training images of 365 scenes, 4,980 to 5 each; 36,500 test images.

    python -m shike_jax train --config=places_lt:root=/data/places,weights=resnet152.pth --workdir=runs/places

Arguments: `paper` or `official` (form of the losses); weights= torchvision's file of an ImageNet ResNet-152, or a
checkpoint converted before (`none` trains from scratch, with nothing frozen); source=lists (root= holds train/ and
val/) or source=tfds (`places365_small` stored as array_record); lists= the folder of Places_LT_{train,val,test}.txt,
root itself when empty; backbone=resnet152, epochs=30, classifier_epochs=20, lr=0.02 (peak, sec. 4.2). The
stem and the shared stages stay as they come, their BN in inference mode.
Needs (counted, not measured): 35.6 GFLOP forward an image, 20.7 of them in the frozen part; 1.7e17 FLOP of training (28
minutes at 100 TFLOP/s); a batch of 256 on one GPU 5.0 GB (docs/speed.md). The paper: 43.6 many, 39.2 medium, 44.8 few,
41.9 all. Here: not yet measured.
"""

from shike_jax import config as schema


def get_config(arguments: str | None = None):
    """Three experts on a frozen ResNet-152, batches of 256, 224 px, lr 0.02."""
    args = schema.parse_arguments(
        arguments,
        ("paper", "official"),
        source="lists",
        root="",
        lists="",
        weights="",
        backbone="resnet152",
        epochs=30,
        classifier_epochs=20,
        lr=0.02,
    )
    if not args["weights"]:
        raise schema.UserError("config argument weights is missing: expected ImageNet weights (resnet152.pth), or none")
    config = schema.base()
    config.name = "places_lt"
    schema.photograph_recipe(
        config, args["preset"], args["backbone"], (args["epochs"], args["classifier_epochs"]), args["lr"]
    )
    if args["weights"] != "none":
        schema.fine_tuning(config, args["weights"], frozen=True)
    name = "places365_small" if args["source"] == "tfds" else "places_lt"
    config.data.update({"source": args["source"], "name": name, "root": args["root"]})
    if folder := args["lists"] or args["root"]:
        for part in ("train", "val", "test"):
            config.data[f"{part}_list"] = f"{folder}/Places_LT_{part}.txt"
    return config
