"""iNaturalist 2018 (paper, table 2): 437,513 training images of 8,142 species, 24,426 validation images to evaluate on.

    python -m shike_jax train --config=configs/inat18.py:root=/data/inat18,lists=/data/lists --workdir=runs/inat18
    python -m shike_jax train --config=configs/inat18.py:source=tfds --workdir=runs/inat18

Arguments: `paper` or `official` (form of the losses); source=lists (root= holds train_val2018/, lists= the folder of
iNaturalist18_{train,val}.txt, root itself when empty) or source=tfds (`i_naturalist2018` stored as array_record);
backbone=resnet50, epochs=180, classifier_epochs=20, lr=0.025 (peak, sec. 4.2; the paper names no batch size).
Needs (counted, not measured): 21.6 GFLOP forward an image, 5.3e18 FLOP of training (14.7 hours at 100 TFLOP/s); a batch
of 256 on one GPU 14.7 GB (docs/speed.md). The paper: 75.4. Here: not yet measured.
"""

from shike_jax import config as schema


def get_config(arguments: str | None = None):
    """Three experts on ResNet-50, batches of 256, 224 px, lr 0.025."""
    args = schema.parse_arguments(
        arguments,
        ("paper", "official"),
        source="lists",
        root="",
        lists="",
        backbone="resnet50",
        epochs=180,
        classifier_epochs=20,
        lr=0.025,
    )
    config = schema.base()
    config.name = "inat18"
    schema.photograph_recipe(
        config, args["preset"], args["backbone"], (args["epochs"], args["classifier_epochs"]), args["lr"]
    )
    folder = args["lists"] or args["root"]
    config.data.update({"source": args["source"], "name": "i_naturalist2018", "root": args["root"], "test_part": "val"})
    if args["source"] == "lists" and folder:
        for part in ("train", "val"):
            config.data[f"{part}_list"] = f"{folder}/iNaturalist18_{part}.txt"
    config.train.eval_every_epochs = 5
    return config
