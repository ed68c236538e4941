"""H2T, head-to-tail feature fusion (Li et al., AAAI 2024), on CIFAR100-LT: a plain ResNet-32 in two stages.

    python -m shike_jax train --config=configs/h2t_cifar.py:imbalance_factor=100 --workdir=runs/h2t_if100

Arguments: imbalance_factor=100 (also 50, 200), epochs=200, classifier_epochs=10, exchange=0.25 (share of the channels;
0 re-trains the classifier on balanced batches alone), weight_decay=5e-4, file=cifar-100-python.tar.gz (as for
configs/cifar_lt.py).
Full length, seed 0: 47.94 at IF 100, 45.20 at IF 200, docs/results/h2t_if100 and h2t_if200 (published: 52.95 / 47.80 /
43.95 at IF 50 / 100 / 200).

What is followed of the authors' code:
- stage one: cross-entropy with mixup (alpha 1: one lam and one permutation a batch, after normalisation), crop and
  flip, lr 0.1, cosine per epoch without warm-up; weight decay 2e-4 in their files, 5e-4 here;
- stage two: a fresh optimiser for the classifier alone (its weights continue from stage one), lr 0.1 x 0.2, cosine per
  epoch; their weight decay is 5e-4 at IF 100 and 2e-4 at IF 50 and 200;
- an epoch is one pass over the instance-sampled images in random order, the last partial batch kept; each of them meets
  a class-balanced one (a class uniformly, then one of its images), which is augmented on its own and gives the label;
- batch normalisation stays in training mode; the balanced batch passes first, the instance-sampled one second, and
  each moves the running averages; floor(rho K) channels of the last map are drawn again at every step;
- the linear layer begins with He normal weights.
"""

from shike_jax import config as schema


def get_config(arguments: str | None = None):
    """Stage `mixup` learns the representation, stage `h2t` re-trains its classifier on exchanged feature maps."""
    args = schema.parse_arguments(
        arguments,
        imbalance_factor=100.0,
        epochs=200,
        classifier_epochs=10,
        exchange=0.25,
        weight_decay=5e-4,
        file="",
    )
    config = schema.base()
    config.name = f"h2t_cifar100_lt_if{args['imbalance_factor']:g}"
    config.data.update({"source": "tfds", "name": "cifar100", "imbalance_factor": args["imbalance_factor"]})
    config.data.update({"subset": "h2t", "divisions": "h2t"})
    if args["file"]:
        schema.exported(config, args["file"])
    config.augment.update({"crop": "pad", "pad": 4, "flip": True})
    config.model.update({"backbone": "resnet32", "depths": (1,), "fusion": False, "shortcut": "A", "head": "linear"})
    config.run = ("mixup", "h2t")
    config.stages.mixup = schema.stage(epochs=args["epochs"], mixup=1.0, lr=0.1)
    config.stages.h2t = schema.stage(
        epochs=args["classifier_epochs"],
        sampler="paired" if args["exchange"] else "balanced",
        exchange=args["exchange"],
        train=("heads/representation/.*",),
        lr=0.1 * 0.2,
    )
    for name in config.run:
        config.stages[name].update({"schedule": "cosine", "weight_decay": args["weight_decay"]})
    return config
