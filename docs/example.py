"""SHIKE on long-tailed handwritten digits, in a training loop of its own: Flax, Optax and the names of `shike_jax`.

    python docs/example.py

Stage one learns the representation: three experts over a shared trunk, with SHIKE's loss. Stage two freezes it and
trains new classifiers with the balanced softmax. This takes a minute or two on two CPU cores.
"""

import jax
import optax

import shike_jax as sj

BATCH = 32


def make_step(network, optimizer, loss, heads):
    """A compiled step of one stage: (variables, optimiser's state, images, labels) to the new ones and the loss."""

    @jax.jit
    def step(variables, state, images, labels):
        def objective(params):
            given = {"params": params, "batch_stats": variables["batch_stats"]}
            logits, new = network.apply(given, images, heads, train=True, mutable=["batch_stats"])
            return loss(logits, labels).mean(), new["batch_stats"]

        (value, stats), gradients = jax.value_and_grad(objective, has_aux=True)(variables["params"])
        updates, state = optimizer.update(gradients, state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, "batch_stats": stats}, state, value

    return step


def train(network, variables, data, optimizer, loss, heads, epochs):
    """Trains one stage and returns the variables at its end."""
    step = make_step(network, optimizer, loss, heads)
    state = optimizer.init(variables["params"])
    for epoch in range(epochs):
        for images, labels in data.train.batches(BATCH, seed=epoch, augment=True):
            variables, state, value = step(variables, state, images, labels)
        if epoch % 10 == 9:
            print(f"{heads} {epoch + 1}/{epochs}: loss of the last batch {value:.3f}")
    return variables


def sgd(peak, steps):
    """Momentum and weight decay as in the paper; the learning rate falls along a cosine."""
    rate = optax.cosine_decay_schedule(peak, steps)
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate, momentum=0.9))


def only_new_classifiers(params):
    """A label for each parameter: what stage two trains, and what it leaves alone."""

    def label(path, _):
        return "trained" if [key.key for key in path[:2]] == ["heads", "classifier"] else "frozen"

    return jax.tree_util.tree_map_with_path(label, params)


def scores(network, variables, data, heads):
    """Top-1 of all test images and of the classes with many, medium and few training images, in percent."""
    predict = jax.jit(lambda images: network.apply(variables, images, heads))
    found = sj.evaluate(predict, data.test)
    return {name: found[name] for name in ("top1", "many", "medium", "few")}


def main(epochs=60, classifier_epochs=20):
    """Runs both stages; returns the scores after each."""
    data = sj.load_data("digits_lt", imbalance_factor=20)
    print(data)
    network = sj.create_model("resnet20", data.num_classes, experts=(1, 2, 1), width=8, blocks=(1, 1, 1))
    images, _ = next(data.train.batches(BATCH))
    variables = jax.jit(network.init)(jax.random.key(0), images)  # both sets of classifiers

    steps = -(-len(data.train) // BATCH)
    first = train(network, variables, data, sgd(0.1, epochs * steps), sj.losses.shike, "representation", epochs)

    def balanced(logits, labels):
        return sj.losses.balanced_softmax(logits, labels, data.class_counts)

    kinds = {"trained": sgd(0.1, classifier_epochs * steps), "frozen": optax.set_to_zero()}
    second = optax.multi_transform(kinds, only_new_classifiers)
    last = train(network, first, data, second, balanced, "classifier", classifier_epochs)

    found = {
        "representation": scores(network, first, data, "representation"),
        "classifier": scores(network, last, data, "classifier"),
    }
    for heads, values in found.items():
        print(f"{heads:<15}", "  ".join(f"{name} {value:.1f}" for name, value in values.items()))
    return found


if __name__ == "__main__":
    main()
