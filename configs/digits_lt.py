"""Handwritten digits, long-tailed: real images that come with scikit-learn, a minute on a laptop.

    python -m shike_jax train --config=configs/digits_lt.py --workdir=runs/digits

Arguments: `official` or `paper`; imbalance_factor=20, width=8, epochs=80, classifier_epochs=20.
"""

from shike_jax import config as schema


def get_config(arguments: str | None = None):
    """A narrow ResNet with SHIKE's three experts on 16x16 digits, and mixup in stage one."""
    args = schema.parse_arguments(
        arguments, ("official", "paper"), imbalance_factor=20.0, width=8, epochs=80, classifier_epochs=20
    )
    config = schema.base()
    config.name = "digits_lt"
    config.data.update({"source": "digits", "name": "digits", "image_size": 16})
    config.data.update({"imbalance_factor": args["imbalance_factor"], "mean": (0.3,) * 3, "std": (0.35,) * 3})
    # Mirrored digits are other digits.
    config.augment.update({"crop": "pad", "pad": 2, "flip": False})
    config.model.update({"backbone": "resnet20", "width": args["width"], "blocks": (1, 1, 1)})
    schema.shike_stages(config, args["preset"], (args["epochs"], args["classifier_epochs"]))
    for name in config.run:
        config.stages[name].batch_size = 32
    # Not SHIKE's: with 489 images, mixing them makes runs scatter half as much (docs/results/digits).
    config.stages.representation.mixup = 0.4
    config.train.eval_every_epochs = config.train.checkpoint_every_epochs = 5
    return config
