"""What SHIKE is compared with, on CIFAR100-LT or CIFAR10-LT: one ResNet-32 and one method (paper, tables 1 to 3).

    python -m shike_jax train --config=configs/baselines_cifar.py:METHOD,imbalance_factor=100 --workdir=runs/METHOD

METHOD, the first being the default: `ce` (cross-entropy), `focal`, `class_balanced` (effective number), `ldam_drw`,
`logit_adjusted`, `balanced_softmax`, `crt` (classifier re-trained on balanced batches), `lws` (learnable weight
scaling), `balpoe` (three experts with different priors), `gcl` (Gaussian clouds, then classifiers on balanced
batches), `mislas` (mixup, then label-aware smoothing and weight scaling on balanced batches), `ride` (three experts
kept diverse), `sade` (three experts for three distributions; `evaluate --adjust=sade` weighs them by the images),
`proco` (probabilistic contrast), `disalign` (cross-entropy, then calibrated logits), `cmo` (rare foregrounds on
frequent backgrounds). tau-normalisation and post-hoc
logit adjustment need no training of their own: `evaluate --adjust=tau_norm --tau=0.7` on a run of `ce`. Equations and
sources are in shike_jax/methods.
Other arguments: dataset=cifar100|cifar10|digits (digits: real images of 16 px, seconds), imbalance_factor=100,
epochs=180, classifier_epochs=20 (of two-stage methods; one-stage methods train for the sum of both), width=0 (channels
of the stem; 0: 16), file=cifar-100-python.tar.gz (as for configs/cifar_lt.py). Augmentation, optimiser and schedule are
those of configs/cifar_lt.py, so that only the method differs. Results: docs/methods_cifar.md.
"""

from shike_jax import config as schema

LOSSES = {  # method: weights and parameters of its first stage's losses; the first one's are the default
    "ce": {"ce": 1.0},
    "focal": {"ce": 0.0, "focal": 1.0, "focal_gamma": 2.0},
    "class_balanced": {"ce": 0.0, "class_balanced": 1.0, "class_balanced_beta": 0.9999},
    "ldam_drw": {"ce": 0.0, "ldam": 1.0, "ldam_margin": 0.5, "ldam_drw": 0.8},
    "logit_adjusted": {"ce": 0.0, "logit_adjusted": 1.0, "logit_adjusted_tau": 1.0},
    "balanced_softmax": {"ce": 0.0, "balanced": 1.0},
    "crt": {"ce": 1.0},
    "lws": {"ce": 1.0},
    "balpoe": {"ce": 0.0, "balanced_experts": 1.0},
    "gcl": {"ce": 0.0, "gcl": 1.0},
    "mislas": {"ce": 1.0},
    "ride": {"ce": 1.0, "diversity": 0.2},
    "sade": {"ce": 0.0, "sade": 1.0},
    "proco": {"ce": 0.0, "logit_adjusted": 1.0, "proco": 1.0},
    "disalign": {"ce": 1.0},
    "cmo": {"ce": 1.0},
}
SECOND = {  # of methods with two stages: losses, sampler and second set of classifiers of the second
    "crt": ({"ce": 1.0}, "balanced", "fresh"),
    "lws": ({"ce": 1.0}, "balanced", "scaled"),
    "gcl": ({"ce": 0.0, "gcl": 1.0}, "balanced", "fresh"),
    "mislas": ({"ce": 0.0, "label_aware": 1.0}, "balanced", "scaled"),
    "disalign": ({"ce": 0.0, "generalized_reweight": 1.0}, "shuffle", "aligned"),
}
THREE_EXPERTS = ("balpoe", "ride", "sade")
COSINE = ("ldam_drw", "gcl")


def get_config(arguments: str | None = None):
    """One network (or three experts) without fusion, trained in one stage or two."""
    args = schema.parse_arguments(
        arguments,
        tuple(LOSSES),
        dataset="cifar100",
        imbalance_factor=100.0,
        epochs=180,
        classifier_epochs=20,
        width=0,
        file="",
    )
    method, config = args["preset"], schema.base()
    config.name = f"{method}_{args['dataset']}_lt_if{args['imbalance_factor']:g}"
    _set_data(config, args)
    head = "cosine" if method in COSINE else "linear"
    config.model.update({"fusion": False, "depths": (1, 2, 1) if method in THREE_EXPERTS else (1,), "head": head})
    epochs, later = args["epochs"], args["classifier_epochs"]
    config.run = ("representation", "classifier") if method in SECOND else ("representation",)
    config.stages.representation = schema.stage(epochs=epochs if method in SECOND else epochs + later)
    config.stages.representation.loss.update(LOSSES[method])
    if method in SECOND:
        losses, sampler, config.model.second_head = SECOND[method]
        config.stages.classifier = schema.stage(
            epochs=later, heads="classifier", train=("heads/classifier/.*",), sampler=sampler, lr=0.1
        )
        config.stages.classifier.loss.update(losses)
    if method == "mislas":
        config.stages.representation.mixup = 1.0
    if method == "cmo":
        config.stages.representation.update({"sampler": "foregrounds", "cmo": 1.0})
    if args["dataset"] == "digits":
        for name in config.run:
            config.stages[name].batch_size = 32
    config.train.checkpoint_every_epochs = max(1, epochs // 20)
    return config


def _set_data(config, args) -> None:
    config.data.update({"source": "tfds", "name": args["dataset"], "imbalance_factor": args["imbalance_factor"]})
    config.model.update({"backbone": "resnet32", "width": args["width"]})
    if args["dataset"] == "digits":
        config.data.update({"source": "digits", "image_size": 16, "mean": (0.3,) * 3, "std": (0.35,) * 3})
        config.augment.update({"crop": "pad", "pad": 2, "flip": False})
        config.model.update({"backbone": "resnet20", "blocks": (1, 1, 1), "width": args["width"] or 8})
        return
    if args["file"]:
        schema.exported(config, args["file"])
    config.augment.update({"crop": "pad", "pad": 4, "flip": True, "policy": "autoaugment_cifar", "cutout": 16})
