"""Features of a frozen network (timm, CLIP, DINOv2, ...), or any other arrays, long-tailed: a classifier over them.

    python -m shike_jax train --config=configs/features_lt.py:train=A.npz,test=B.npz --workdir=runs/features

A.npz and B.npz hold `features` float [N,D] and `labels` int [N]; docs/features.md says how they are made. Arguments:
train=FILE, test=FILE, val=FILE; name= in reports; imbalance_factor=0 (0: the file's own counts); epochs=30, batch=128,
lr=0.01; experts=1 and width=0: with width=512 each expert has a hidden layer of so many units, without it the
classifiers see the features as they are; head=cosine or linear.
"""

from shike_jax import config as schema


def get_config(arguments=None):
    """Balanced softmax over the features, with AdamW and a cosine schedule; several experts distil each other too."""
    args = schema.parse_arguments(
        arguments,
        train="",
        test="",
        val="",
        name="features",
        imbalance_factor=0.0,
        epochs=30,
        batch=128,
        lr=0.01,
        experts=1,
        width=0,
        head="cosine",
    )
    config = schema.base()
    config.name = "features_lt"
    config.data.update({"source": "npz", "name": args["name"], "profile": "natural"})
    config.data.npz.update({part: args[part] for part in ("train", "test", "val")})
    if args["imbalance_factor"]:
        config.data.update({"profile": "exponential", "imbalance_factor": args["imbalance_factor"]})
    config.augment.update({"crop": "none", "flip": False})
    config.model.update({"backbone": "vectors", "depths": (1,) * args["experts"], "width": args["width"]})
    config.model.head = args["head"]
    config.run = ("classifier",)
    config.stages.classifier = schema.stage(
        epochs=args["epochs"],
        heads="classifier",
        batch_size=args["batch"],
        optimizer="adamw",
        schedule="cosine",
        lr=args["lr"],
        warmup_lr=0.0,
        warmup_epochs=0,
    )
    config.stages.classifier.loss.update({"ce": 0.0, "balanced": 1.0, "mu": float(args["experts"] > 1)})
    return config
