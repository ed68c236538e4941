"""CIFAR100-LT and CIFAR10-LT (paper, tables 1 and 4).

    python -m shike_jax train --config=configs/cifar_lt.py:official,imbalance_factor=100 --workdir=runs/cifar100_if100

Arguments: `official` (what the authors ran), `paper` (printed equations) or `plus` (below); dataset=cifar100|cifar10,
imbalance_factor=100, epochs=180, classifier_epochs=20, file=cifar-100-python.tar.gz (the official archive, the binary
one, or what `pack` wrote: no TensorFlow needed then).
Needs: 1.3e15 FLOP of training (counted), 0.5 GB for a step on a GPU (stated by the compiler, docs/speed.md); two CPU
cores took 100 to 170 seconds for an epoch of stage one, four faster ones 30 to 80, with other work on the machine.
Full-length results, seed 0: IF 100 55.59 %, few-shot 36.87 (docs/results/cifar100_lt_if100; the paper: 56.3), IF 50
60.34 %, few-shot 46.33 (docs/results/cifar100_lt_if50; the paper: 59.8). With
epochs=20, classifier_epochs=8, two seeds: 28.18 and 28.48 %, few-shot 0.57 and 0.87 before, 19.07 and 18.80 after stage
two (docs/results/cifar100_lt_20_8).

`plus` is `official` with what may lift it at the same length. It has been run at 20 + 8 epochs of a small network only
(docs/methods_cifar.md), so whether it helps at full length is not known. Each addition is one field: a fourth expert
(model.depths=(1,2,1,2)) and averaged weights (stages.NAME.average=ema, decay 0.99 a step, in both stages). Averaging
adds a pass over the training images to every evaluation, so `plus` evaluates every tenth epoch. Further candidates are
left off: stages.representation.mixup=0.2 (hurt in the short runs), stages.representation.cutmix=1.0,
stages.representation.sam_rho=0.05 (twice the work).
"""

from shike_jax import config as schema


def get_config(arguments: str | None = None):
    """ResNet-32 with three experts, AutoAugment and Cutout, 180 + 20 epochs."""
    args = schema.parse_arguments(
        arguments,
        ("official", "paper", "plus"),
        dataset="cifar100",
        imbalance_factor=100.0,
        epochs=180,
        classifier_epochs=20,
        file="",
    )
    config = schema.base()
    config.name = f"{args['dataset']}_lt_if{args['imbalance_factor']:g}"
    config.data.update({"source": "tfds", "name": args["dataset"], "imbalance_factor": args["imbalance_factor"]})
    if args["file"]:
        schema.exported(config, args["file"])
    config.augment.update({"crop": "pad", "pad": 4, "flip": True, "policy": "autoaugment_cifar", "cutout": 16})
    config.model.update({"backbone": "resnet32", "depths": (1, 2, 1), "head": "cosine"})
    form = "paper" if args["preset"] == "paper" else "official"
    schema.shike_stages(config, form, (args["epochs"], args["classifier_epochs"]))
    config.train.checkpoint_every_epochs = max(1, args["epochs"] // 20)  # seconds on an accelerator, minutes on a CPU
    if args["preset"] == "plus":
        config.model.depths = (1, 2, 1, 2)
        for name in config.run:
            config.stages[name].update({"average": "ema", "average_decay": 0.99})
        config.train.eval_every_epochs = 10
    return config
