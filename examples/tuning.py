"""Train all weights, or BayesTune's few, and keep them in a file."""

import math

import keras

import keras_bayestune as kbt


def tune_all(model, train, goal, args):
    """Return the number of trained scalars and the file with their values."""
    model.compile(keras.optimizers.Adam(args.learning_rate or 1e-4), **goal)
    model.fit(train, steps_per_epoch=args.finetune_steps, shuffle=False)
    file = args.out / "model.weights.h5"
    model.save_weights(file)
    return sum(math.prod(v.shape) for v in model.trainable_variables), file


def tune_few(model, train, goal, args):
    """Return the number of trained scalars and the file with their values."""
    steps = args.selection_steps
    sampler = kbt.BayesTuneSGLD(
        args.selection_learning_rate,
        warmup_steps=steps // 4,
        burn_in_steps=steps // 2,
        thinning=max(1, steps // 80),
        seed=args.seed,
    )
    select = kbt.SparseMaskCallback(
        fraction=args.fraction,
        selection_steps=steps,
        finetune_optimizer=keras.optimizers.Adam(args.learning_rate or 1e-3),
    )
    model.compile(sampler, **goal)
    total = steps + args.finetune_steps
    model.fit(train, steps_per_epoch=total, callbacks=[select], shuffle=False)
    select.mask.summary()
    select.mask.save(args.out / "mask.safetensors")
    kbt.plot_scales(select.scores, select.mask).figure.savefig(args.out / "scales.png")
    kbt.plot_mask(select.mask).figure.savefig(args.out / "mask.png")
    file = args.out / "delta.safetensors"
    kbt.SparseDelta.from_model(model, select).save(file)
    return select.mask.count, file
